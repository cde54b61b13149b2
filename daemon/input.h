/* SPDX-License-Identifier: Apache-2.0 */
#ifndef DAEMON_INPUT_H
#define DAEMON_INPUT_H

#include <stdint.h>

#include "daemon/op.h"
#include "proto/wire.h"

/*
 * What a request brings, copied or mapped into its operation and paid for. The frame that it
 * came in is gone afterwards.
 */
int input_text(struct op *op, struct wire_str text, struct err *e);
int input_tokens(struct op *op, struct wire_bin tokens, struct err *e);

/* The first `bytes` of the descriptor (UINT64_MAX: all). A memfd that is sealed against every
 * change is mapped; what is not could change under our eyes (or be cut short, and kill us with
 * SIGBUS), so it is read, and may have half the size. fd stays the caller's. */
int input_document(struct op *op, int fd, uint64_t bytes, uint64_t max, struct err *e);

int input_op_id(struct op *op, bool has, struct wire_bin id, struct err *e);

#endif /* DAEMON_INPUT_H */
