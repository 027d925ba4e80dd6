#!/bin/sh
# Rust crates zmq 0.10.0 (zmq-sys 0.12.0) and zmq2 0.5.0 (zmq-sys2 0.3.0); cargo, a C++ compiler and ldd.
#
# Both manifests have `system-deps` with `libzmq = "4.1"`, which finds a system's library by pkg-config, and one would
# expect that library to be taken where it is installed. Their build scripts do not ask for it: they compile the libzmq
# 4.3.4 of the crate zeromq-src, whatever is there, and link it statically. So a system's security updates do not reach
# these programs. zmq 0.9.2 (zmq-sys 0.11.0) takes the system's.
#
# Output seen:
#   zmq 0.10.0: libzmq (4, 3, 4), of the system: no
#   zmq2 0.5.0: libzmq (4, 3, 4), of the system: no
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-$folder/target}"
for crate in zmq@0.10.0 zmq2@0.5.0; do
    name=${crate%@*}
    mkdir "$folder/$name"
    cd "$folder/$name"
    cargo init --quiet --name "asks-$name" --vcs none
    cargo add --quiet "$name@=${crate#*@}"
    echo "fn main() { println!(\"{:?}\", $name::version()); }" > src/main.rs
    cargo build --quiet
    version=$("$CARGO_TARGET_DIR/debug/asks-$name")
    if ldd "$CARGO_TARGET_DIR/debug/asks-$name" | grep -q libzmq; then system=yes; else system=no; fi
    echo "$name ${crate#*@}: libzmq $version, of the system: $system"
    test "$version" = "(4, 3, 4)"
    test "$system" = no
done
