#!/bin/sh
# Rust crate zmq 0.10.0 (zmq-sys 0.12.0); cargo, a C++ compiler and ldd.
#
# The manifest of zmq-sys has `system-deps` with `libzmq = "4.1"`, which finds a system's library by pkg-config, and one
# would expect that library to be taken where it is installed. The build script does not ask for it: it compiles the
# libzmq 4.3.4 of the crate zeromq-src, whatever is there, and links it statically. So a system's security updates do
# not reach these programs. zmq 0.9.2 (zmq-sys 0.11.0) takes the system's.
#
# Output seen:
#   zmq 0.10.0: libzmq (4, 3, 4), of the system: no
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-$folder/target}"
cd "$folder"
cargo init --quiet --name asks-zmq --vcs none
cargo add --quiet zmq@=0.10.0
echo 'fn main() { println!("{:?}", zmq::version()); }' > src/main.rs
cargo build --quiet
version=$("$CARGO_TARGET_DIR/debug/asks-zmq")
if ldd "$CARGO_TARGET_DIR/debug/asks-zmq" | grep -q libzmq; then system=yes; else system=no; fi
echo "zmq 0.10.0: libzmq $version, of the system: $system"
test "$version" = "(4, 3, 4)"
test "$system" = no
