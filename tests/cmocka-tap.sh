#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Runs a cmocka program. cmocka 1.1.5 reports a skipped test as "not ok N # SKIP name", which
# readers of TAP, automake's among them, count as a failure; here it becomes "ok".
exec 3>&1
status=$({ { "$@"; echo $? >&4; } | sed 's/^not ok \([0-9]*\) # SKIP/ok \1 # SKIP/' >&3; } 4>&1)
exit "$status"
