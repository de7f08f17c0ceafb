#!/bin/bash
# Fuzzes every target, or those named, for so many seconds each: tests/fuzz/run.sh [seconds] [target…]
# Needs a C++ compiler for libFuzzer, and no nightly Rust: coverage is switched on by LLVM's own flags.
set -euo pipefail
cd "$(dirname "$0")"
seconds=${1:-120}
shift || true
targets=("$@")
if [ ${#targets[@]} = 0 ]; then targets=(config pattern answer waiting kept); fi

flags=(-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 -Cllvm-args=-sanitizer-coverage-trace-compares
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table)
# With a target named, build scripts and macros are built without the flags.
host=$(rustc -vV | sed -n 's/^host: //p')
RUSTFLAGS="${flags[*]}" cargo build --release --target "$host"
for target in "${targets[@]}"; do
    found=target/corpus/$target
    mkdir -p "$found"
    "target/$host/release/$target" -max_total_time="$seconds" -timeout=10 -rss_limit_mb=1024 -print_final_stats=1 \
        -artifact_prefix="target/$target-" "$found" "../it/fuzz/seeds/$target"
done
