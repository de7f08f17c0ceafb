#!/bin/bash
# tests/package/run.sh DEB NEWER: what inside.sh says of the package, in a Debian that is booted for it: the files of this machine below
# an overlay in memory, with systemd and a network of its own. Nothing of it is left. Needs root or sudo, systemd-container, and
# PostgreSQL as Debian has it. Ends with 77 where nobody may mount or boot, as in most containers.
set -euo pipefail

refuse() {
    echo "$0: the package cannot be tested here: $1" >&2
    exit "${2:-1}"
}

[ $# = 2 ] || refuse "the arguments are two packages, the second one newer"
[ "$(id -u)" = 0 ] || exec sudo "$0" "$@"
command -v systemd-nspawn >/dev/null || refuse "systemd-nspawn is missing: apt-get install systemd-container"
command -v pg_createcluster >/dev/null || refuse "pg_createcluster is missing: apt-get install postgresql"
! dpkg --status outboxd >/dev/null 2>&1 || refuse "outboxd is installed, so this system is not a clean one"

if [ -z "${OUTBOXD_MOUNTS:-}" ]; then
    # Every mount is in a namespace of this run, and goes with it however it ends.
    OUTBOXD_MOUNTS=$(mktemp --directory)
    export OUTBOXD_MOUNTS
    trap 'rmdir "$OUTBOXD_MOUNTS"' EXIT
    unshare --mount mount -t tmpfs tmpfs "$OUTBOXD_MOUNTS" || refuse "this system may not mount" 77
    unshare --mount "$0" "$@"
    exit
fi

work=$OUTBOXD_MOUNTS
mount -t tmpfs -o size=2g tmpfs "$work"
mkdir "$work"/{upper,work,root}
mount -t overlay -o "lowerdir=/,upperdir=$work/upper,workdir=$work/work" overlay "$work/root"

root=$work/root
mkdir "$root/package"
install -m 0755 "$(dirname "$0")/inside.sh" "$root/package/inside.sh"
install -m 0644 "$1" "$root/package/outboxd.deb"
install -m 0644 "$2" "$root/package/newer.deb"

cat >"$root/etc/systemd/system/package-test.service" <<END
[Unit]
SuccessAction=exit
FailureAction=exit
[Service]
Type=oneshot
TimeoutStartSec=10min
ExecStart=/package/inside.sh
StandardOutput=file:/package/log
StandardError=inherit
END

options=(--quiet --directory "$root" --machine outboxd-package-test --private-network --register=no --link-journal=no)
if [ ! -d /run/systemd/system ]; then
    # No systemd to ask for a scope, and /run may be a disk, which nspawn does not take for its own.
    mount -t tmpfs tmpfs /run
    options+=(--keep-unit)
fi

# Whether a system can be booted here at all, before anything is said of the package.
cat >"$root/etc/systemd/system/package-probe.service" <<END
[Unit]
SuccessAction=exit
FailureAction=exit
[Service]
Type=oneshot
ExecStart=true
END
timeout 120 systemd-nspawn "${options[@]}" --boot -- --unit=package-probe.service </dev/null >"$work/console" 2>&1 || {
    tail -n 5 "$work/console" >&2
    refuse "this system may not boot another one" 77
}

# Where no systemd runs, as in a container.
without='dpkg --install /package/outboxd.deb; outboxd --version; dpkg --install /package/newer.deb; dpkg --purge outboxd; ! getent passwd outboxd'
if ! systemd-nspawn "${options[@]}" -- sh -exc "$without" </dev/null >"$work/console" 2>&1; then
    cat "$work/console" >&2
    exit 1
fi

if ! systemd-nspawn "${options[@]}" --boot -- --unit=package-test.service </dev/null >"$work/console" 2>&1; then
    cat "$work/console" "$root/package/log" >&2
    echo "$0: failed" >&2
    exit 1
fi
tail -n 1 "$root/package/log"
