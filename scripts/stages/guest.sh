#!/usr/bin/env bash
# The tests that need a Linux kernel of their own, in QEMU guests (guest/README.md).
# shellcheck source=scripts/lib.sh
source "$(dirname "$0")/../lib.sh"
exec "$root/guest/run.sh"
