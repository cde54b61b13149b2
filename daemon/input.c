/* SPDX-License-Identifier: Apache-2.0 */
#include "config.h"

#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "daemon/input.h"

#define HUGETLBFS 0x958458f6 /* HUGETLBFS_MAGIC of linux/magic.h */

int
input_op_id(struct op *op, bool has, struct wire_bin id, struct err *e)
{
    if (!has)
        return 0;
    if (id.len != OP_ID_BYTES)
        return err_set(e, ERR_INVALID, 0, "key 'op_id': %" PRIu32 " bytes, not %d", id.len,
                       OP_ID_BYTES);
    op->has_op_id = true;
    memcpy(op->op_id, id.p, OP_ID_BYTES);
    return 0;
}

int
input_text(struct op *op, struct wire_str text, struct err *e)
{
    if (op_pay(op, text.len, e) == -1)
        return -1;
    op->text = malloc((size_t)text.len + 1);
    if (op->text == NULL)
        return err_set(e, ERR_QUOTA, errno, "no memory for %" PRIu32 " bytes", text.len);
    if (text.len > 0)
        memcpy(op->text, text.p, text.len);
    op->text[text.len] = '\0';
    op->n_text = text.len;
    return 0;
}

int
input_tokens(struct op *op, struct wire_bin tokens, struct err *e)
{
    op->input = OP_TOKENS;
    if (tokens.len % sizeof *op->ids != 0)
        return err_set(e, ERR_INVALID, 0,
                       "key 'tokens': %" PRIu32 " bytes are no list of 32-bit numbers",
                       tokens.len);
    if (op_pay(op, tokens.len, e) == -1)
        return -1;
    op->n_ids = tokens.len / sizeof *op->ids;
    op->ids = malloc(tokens.len + sizeof *op->ids);
    if (op->ids == NULL)
        return err_set(e, ERR_QUOTA, errno, "no memory for %zu tokens", op->n_ids);
    if (tokens.len > 0)
        memcpy(op->ids, tokens.p, tokens.len);
    for (size_t i = 0; i < op->n_ids; i++)
        op->ids[i] = le32toh(op->ids[i]);
    return 0;
}

/* Copies it; the descriptor may be of any regular file. */
static int
read_document(struct op *op, int fd, size_t len, struct err *e)
{
    size_t got = 0;

    op->text = malloc(len + 1);
    if (op->text == NULL)
        return err_set(e, ERR_QUOTA, errno, "no memory for %zu bytes", len);
    while (got < len) {
        const ssize_t n = pread(fd, op->text + got, len - got, (off_t)got);

        if (n == -1 && errno == EINTR)
            continue;
        if (n <= 0)
            return err_set(e, ERR_INVALID, n == -1 ? errno : 0,
                           "key 'document': it ended after %zu of %zu bytes", got, len);
        got += (size_t)n;
    }
    op->n_text = len;
    return 0;
}

int
input_document(struct op *op, int fd, uint64_t bytes, uint64_t max, struct err *e)
{
    const int all = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE;
    const int seals = fcntl(fd, F_GET_SEALS), flags = fcntl(fd, F_GETFL);
    struct statfs fs;
    /* Huge pages are copied too: their mapping takes from a pool that is not the client's, and ends
     * at whole ones only. */
    const bool sealed = seals != -1 && (seals & all) == all && fstatfs(fd, &fs) == 0 &&
                        fs.f_type != HUGETLBFS;
    const uint64_t most = sealed ? max : max / 2;
    struct stat st;
    void *p;

    op->input = OP_TEXT;
    /* Only memory: reading a file could wait for a disk, and this is the event loop. */
    if (seals == -1 || flags == -1 || (flags & O_ACCMODE) == O_WRONLY ||
        fstat(fd, &st) == -1 || !S_ISREG(st.st_mode))
        return err_set(e, ERR_INVALID, 0,
                       "key 'document': the descriptor is no memfd that "
                       "can be read");
    if (bytes == UINT64_MAX)
        bytes = (uint64_t)st.st_size;
    if (bytes > (uint64_t)st.st_size)
        return err_set(e, ERR_INVALID, 0,
                       "key 'bytes': %" PRIu64 ", but the document has %" PRIu64, bytes,
                       (uint64_t)st.st_size);
    if (bytes > most)
        return err_set(e, ERR_QUOTA, 0,
                       "a document of %" PRIu64 " bytes, at most %" PRIu64
                       " (setting max-document%s)",
                       bytes, most, sealed ? "" : "; twice that if it is sealed");
    if (op_pay(op, bytes, e) == -1)
        return -1;
    if (!sealed || bytes == 0)
        return read_document(op, fd, bytes, e);
    p = mmap(NULL, bytes, PROT_READ, MAP_PRIVATE, fd, 0);
    if (p == MAP_FAILED)
        return err_set(e, ERR_QUOTA, errno, "key 'document': mmap: %s", strerror(errno));
    op->text = op->mapped = p;
    op->n_text = bytes;
    return 0;
}
