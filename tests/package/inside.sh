#!/bin/bash
# What an administrator does, in this order and by the README: install, configure, insert, upgrade, remove, purge. Started by run.sh in a
# system that is thrown away.
set -euxo pipefail
cd /
# A machine that is a container forbids packages to start services; this one may.
rm -f /usr/sbin/policy-rc.d

until_() {
    local -
    set +x
    for _ in $(seq 600); do
        if "$@"; then return; fi
        sleep 0.1
    done
    echo "a minute has passed, and it is not so: $*"
    systemctl status outboxd --no-pager --full || true
    journalctl --unit outboxd --no-pager --lines 50 || true
    exit 1
}

# Every file that a package might leave, without what dpkg, adduser, systemd and PostgreSQL keep for themselves.
files() {
    find /etc /opt /run /srv /usr /var -xdev \
        \( -path '/etc/*-' -o -path /run/adduser -o -path /run/dbus -o -path /run/log -o -path '/run/postgresql*' -o -path /run/systemd \
        -o -path /run/udev -o -path /run/user -o -path /var/cache -o -path /var/lib/dpkg -o -path /var/lib/postgresql -o -path /var/log \
        -o -path /var/tmp \) -prune -o -type d -printf '%p %y %m %u %g\n' -o -printf '%p %y %m %u %g %s\n' | sort
}
not() { ! "$@"; }
accounts() { getent passwd; getent group; }
sql() { runuser -u postgres -- psql -XqAt -v ON_ERROR_STOP=1 "$@"; }
as_outboxd() { runuser -u outboxd -- outboxd "$@"; }

# A server, as it is after apt-get install postgresql.
version=$(ls /usr/lib/postgresql | sort -V | tail -n 1)
while read -r other name _; do pg_dropcluster --stop "$other" "$name"; done < <(pg_lsclusters --no-header)
pg_createcluster "$version" main
systemctl start "postgresql@$version-main"
sql -c 'CREATE ROLE shop' -c 'CREATE DATABASE app'
files >/package/files
accounts >/package/accounts

# Install.
apt-get install --yes /package/outboxd.deb
[ "$(systemctl is-enabled outboxd)" = disabled ]
[ "$(systemctl is-active outboxd)" = inactive ]
[ "$(stat --format '%U:%G %a' /etc/outboxd/outboxd.toml)" = 'root:outboxd 640' ]
[ "$(stat --format '%U:%G %a' /etc/default/outboxd)" = 'root:root 600' ]
[ "$(dpkg-query --show --showformat '${Conffiles}' outboxd | grep -c /)" = 2 ]
for page in outboxd outboxd-run outboxd-status; do test -s "/usr/share/man/man1/$page.1.gz"; done
bash -n /usr/share/bash-completion/completions/outboxd
head -n 1 /usr/share/zsh/vendor-completions/_outboxd | grep '#compdef outboxd'
grep --quiet outboxd /usr/share/fish/vendor_completions.d/outboxd.fish
doc=/usr/share/doc/outboxd
zgrep '"name": "tokio-postgres"' $doc/sbom.cdx.json.gz >/dev/null
zgrep 'of tokio-postgres' $doc/crates.licenses.gz >/dev/null
ls $doc/README.md.gz $doc/README.Debian.gz $doc/changelog.gz $doc/copyright $doc/examples/prometheus
systemd-analyze verify /lib/systemd/system/outboxd.service

# Configure.
runuser -u postgres -- createuser outboxd
sql -d app -c 'GRANT CREATE ON DATABASE app TO outboxd'
cat >/etc/outboxd/outboxd.toml <<'END'
[database]
url = "postgres:///app"

[handler.receipt]
topics = ["#"]
command = ["sh", "-c", "sleep 0.2; echo $OUTBOX_EVENT_ID >>/var/lib/outboxd/receipts"]
END
as_outboxd migrate
sql -d app -c 'SELECT outbox.add_roles()' -c 'GRANT outbox_producer TO shop'
install -D -m 0644 $doc/examples/commands.conf /etc/systemd/system/outboxd.service.d/commands.conf
sed -i 's/^#StateDirectory=/StateDirectory=/' /etc/systemd/system/outboxd.service.d/commands.conf
as_outboxd check
systemctl daemon-reload
systemctl enable --now outboxd
systemd-analyze security --no-pager --threshold=20 outboxd | tail -n 1

# Insert a row, and see it handled.
insert() {
    local -
    set +x
    sql -d app -c "SET ROLE shop; INSERT INTO outbox.event (topic, payload) VALUES ('user.registered', '{\"name\": \"Ada\"}')"
}
events() { sql -d app -c 'SELECT id FROM outbox.event ORDER BY id'; }
done_() { sql -d app -c 'SELECT count(*) FROM outbox.done'; }
receipts() { wc -l </var/lib/outboxd/receipts; }
insert
until_ test -s /var/lib/outboxd/receipts
first=$(events)
handled() { as_outboxd show "$first" | grep done; }
until_ handled
as_outboxd status
as_outboxd events
as_outboxd doctor

# Upgrade, while rows are inserted: the daemon drains, and the new one goes on.
inserts() { set +x; until [ -e /package/enough ]; do insert; done; }
inserts &
inserting=$!
until_ eval '[ "$(receipts)" -ge 20 ]'
before=$(systemctl show --property MainPID --value outboxd)
apt-get install --yes /package/newer.deb
[ "$(systemctl is-active outboxd)" = active ]
after=$(systemctl show --property MainPID --value outboxd)
[ "$before" != "$after" ]
[ "$(readlink "/proc/$after/exe")" = /usr/bin/outboxd ]
grep --quiet handler.receipt /etc/outboxd/outboxd.toml
then_=$(receipts)
until_ eval '[ "$(receipts)" -ge $((then_ + 20)) ]'
touch /package/enough
wait $inserting
until_ eval '[ "$(done_)" = "$(events | wc -l)" ]'
# Nothing lost, nothing twice.
diff <(events) <(sort -n /var/lib/outboxd/receipts)
[ "$(sql -d app -c "SELECT count(*) FROM outbox.done WHERE outcome = 'done' AND attempt = 1")" = "$(events | wc -l)" ]
echo "$(events | wc -l) events over an upgrade"

# Remove: the configuration and the account stay. Purge: nothing does, but for the database.
apt-get remove --yes outboxd
[ "$(systemctl is-active outboxd)" != active ]
not pgrep --uid outboxd
test -f /etc/outboxd/outboxd.toml
getent passwd outboxd
dpkg --purge outboxd
systemctl daemon-reload
[ ! -e /usr/bin/outboxd ]
not dpkg --status outboxd
diff /package/accounts <(accounts)
diff /package/files <(files)
not compgen -G '/var/lib/dpkg/info/outboxd*'
events >/dev/null
set +x
echo "the package: installed, configured, used, upgraded under load, removed and purged"
