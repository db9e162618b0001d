# https://just.systems: `just` lists these.
_:
    @just --list --unsorted

# The tests, as in README.md
test:
    cargo test --release --workspace --locked

# What finds most mistakes in a minute: formatting, clippy, tidy
lint:
    cargo fmt --all --check
    cargo clippy --workspace --all-targets --locked -- -D warnings
    python3 tools/tidy

# All that a change must pass
ci:
    .ci/run

# The speed of this machine, beside what its memory allows
bench *ARGS:
    cargo run --release --locked -- bench {{ARGS}}
