#!/usr/bin/env python3
"""outboxd side by side with other queues on PostgreSQL: tests/peers/run.py HARNESS [options]; see tests/README.md.

HARNESS is a folder with bench.py, summary.py and setup.sh, which has made the peers and a PostgreSQL in $PEERS_DIR. This
file adds the row for outboxd, and runs workload by workload, run by run, peer by peer, so that what disturbs the machine for
a while disturbs all of them. Results are the harness' JSON lines, and a table of medians.
"""
import argparse
import contextlib
import os
import pathlib
import subprocess
import sys
import time
import types

PACKAGE = pathlib.Path(__file__).resolve().parents[2]
HOME = pathlib.Path(os.environ.get("PEERS_DIR", "/var/tmp/peers"))
PYTHON = HOME / "py/venv/bin/python"
SINK = HOME / "rs/bench/target/release/sink"
SINK_PORT = 18080
RESULTS = HOME / "out/results.jsonl"
WORKER = PACKAGE / "target/release/examples/peer_worker"

PEERS = ["gw-default", "gw-tuned", "pgboss-tuned", "procrastinate", "gwrs-tuned", "apalis", "outboxd"]
# In this order, because those that take their times from the WAL need a server of another wal_level.
WORKLOADS = {"w1": "replica", "w3": "replica", "w7": "replica", "w5": "replica", "w6": "replica",
             "w2": "logical", "w4": "logical", "w4rr": "logical"}
# What cannot keep up with 500 events a second would only show how long its backlog has become.
TOO_SLOW = {"w4": {"gw-default", "procrastinate"}, "w4rr": {"gw-default", "procrastinate", "apalis"}}


def main():
    options = arguments()
    if os.geteuid() != 0:
        sys.exit("the peers need root: their server runs as another user, and CPU is counted by control groups")
    missing = [path for path in (options.harness / "bench.py", options.harness / "summary.py", options.harness / "setup.sh",
                                 PYTHON, SINK, HOME / "data/PG_VERSION") if not path.exists()]
    if missing:
        sys.exit(f"the peers are not set up: {missing[0]} is missing; run {options.harness}/setup.sh as root first")
    if pathlib.Path(sys.executable) != PYTHON:  # which has the driver for PostgreSQL
        os.execv(PYTHON, [str(PYTHON), __file__, *sys.argv[1:]])
    subprocess.run(["cargo", "build", "--release", "--locked", "--example", "peer_worker"], cwd=PACKAGE, check=True)
    if RESULTS.exists():
        RESULTS.rename(RESULTS.with_suffix(f".{time.strftime('%Y%m%d-%H%M%S')}.jsonl"))

    bench = load(options.harness / "bench.py")
    bench.PEERS["outboxd"] = outboxd(bench)
    if stray := pathlib.Path(bench.cg("worker"), "cgroup.procs").read_text().split():
        sys.exit(f"workers of an earlier run are left, end them first: {' '.join(stray)}")
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=PACKAGE, capture_output=True, text=True).stdout
    print(f"outboxd {commit.strip()}, {os.cpu_count()} cores, load before {os.getloadavg()[0]:.2f}", flush=True)
    for level in ("replica", "logical"):
        workloads = [workload for workload in options.workloads if WORKLOADS[workload] == level]
        if workloads:
            with server(options.harness, level), sink():
                template(bench)
                for workload in workloads:
                    measure(bench, workload, options)
    subprocess.run([PYTHON, options.harness / "summary.py", *options.workloads], check=True)


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("harness", type=pathlib.Path, help="the folder of the harness")
    words = lambda text: text.split(",")
    parser.add_argument("--workloads", type=words, default=[w for w in WORKLOADS if w not in ("w4rr", "w5")])
    parser.add_argument("--peers", type=words, default=PEERS)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--short", action="store_true", help="a smoke: small and quick, the figures mean nothing")
    options = parser.parse_args()
    if unknown := [name for name in options.workloads if name not in WORKLOADS]:
        parser.error(f"no such workload: {unknown[0]}")
    return options


def load(path):
    """The harness as a module; as it stands, it would run at once."""
    bench = types.ModuleType("bench")
    bench.__file__ = str(path)
    exec(compile(path.read_text().removesuffix("main()\n"), path, "exec"), bench.__dict__)
    return bench


def outboxd(bench):
    """The row of outboxd. Ids below a million are in the partitions event_p0 and done_p0."""
    return {
        "db": "boutboxd",
        "cmd": [str(WORKER)],
        "env": {"CONC": "50"},
        "bulk": f"insert into outbox.event (topic, payload) select 'bench', {bench.bulkj(0)}::jsonb from generate_series(1,%d) i",
        "enq": f"insert into outbox.event (topic, payload) values ('bench', {bench.J}::jsonb)",
        "pend": "select (select count(*) from outbox.event) - (select count(*) from outbox.done where outcome = 'done')",
        "ins": "event_p",
        "done": ("done_p0", "INSERT", "outcome[text]:'done'"),
        "idcol": "(?:event_)?id",
    }


@contextlib.contextmanager
def server(harness, level):
    if (HOME / "data/postmaster.pid").exists():
        subprocess.run([harness / "setup.sh", "stop"], check=True, stdout=subprocess.DEVNULL)
    subprocess.run([harness / "setup.sh", "start", level], check=True, stdout=subprocess.DEVNULL)
    try:
        yield
    finally:
        subprocess.run([harness / "setup.sh", "stop"], check=True, stdout=subprocess.DEVNULL)


@contextlib.contextmanager
def sink():
    """Answers every POST with 200."""
    process = subprocess.Popen([SINK, str(SINK_PORT)])
    try:
        yield
    finally:
        process.terminate()
        process.wait()


def template(bench):
    """The database that every run gets a copy of, with the schema of this commit."""
    with bench.conn("postgres") as postgres:
        postgres.execute("drop database if exists boutboxd with (force)")
        postgres.execute("create database boutboxd")
    url = f"postgres://postgres@127.0.0.1:{bench.PORT}/boutboxd"
    subprocess.run([WORKER, "setup"], env={**os.environ, "DATABASE_URL": url}, check=True)


def measure(bench, workload, options):
    peers = [peer for peer in options.peers if peer not in TOO_SLOW.get(workload, ())]
    for _ in range(options.runs):
        if workload in ("w5", "w6"):  # they measure all peers at the same time
            measure_one(bench, workload, peers, options.short)
        else:
            for peer in peers:
                measure_one(bench, workload, peer, options.short)


def measure_one(bench, workload, peer, short):
    try:
        run(bench, workload, peer, short)
    except Exception as error:  # one peer that fails does not end the others
        bench.emit(w=workload, peer=peer if isinstance(peer, str) else "all", error=repr(error)[:300])


def run(bench, workload, peer, short):
    row = bench.PEERS.get(peer, {}) if isinstance(peer, str) else {}
    if workload == "w1":
        bench.w1(peer, n=min(row.get("n1", 100000), 2000) if short else None)
    elif workload == "w2":
        bench.w2(peer, n=50 if short else 500)
    elif workload == "w3":
        bench.w3(peer, secs=4 if short else 20)
    elif workload in ("w4", "w4rr"):
        held = workload == "w4rr"
        bench.w4(peer, rate=2000 if held else 500, secs=6 if short else 60, hold=held)
    elif workload == "w5":
        bench.w5(peer, cap=15 if short else 120)
    elif workload == "w6":
        bench.w6(peer, secs=10 if short else 60)
    else:
        n = row.get("n7", 20000)
        bench.w1(peer, handler=f"http:http://127.0.0.1:{SINK_PORT}/hook", n=min(n, 1000) if short else n, tag="w7")


if __name__ == "__main__":
    main()
