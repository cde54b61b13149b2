/* SPDX-License-Identifier: Apache-2.0 */
/*
 * poke FILE PLACE VALUE: sets one byte of a session.db or index.db, with the page's checksum, as
 * a fathomd that means it would. For tests of what another version writes.
 */
#include "config.h"

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include "kvstore/vfs.h"

int
main(int argc, char **argv)
{
    uint8_t page[VFS_PAGE];
    uint64_t place, at;
    FILE *f;

    if (argc != 4 || (f = fopen(argv[1], "r+")) == NULL) {
        fprintf(stderr, "usage: poke FILE PLACE VALUE\n");
        return 64;
    }
    place = strtoull(argv[2], NULL, 0);
    at = place / VFS_PAGE * VFS_PAGE;
    if (fseek(f, (long)at, SEEK_SET) != 0 || fread(page, sizeof page, 1, f) != 1)
        return 74;
    page[place - at] = (uint8_t)strtoul(argv[3], NULL, 0);
    vfs_seal_page(page, at);
    if (fseek(f, (long)at, SEEK_SET) != 0 || fwrite(page, sizeof page, 1, f) != 1)
        return 74;
    return fclose(f) == 0 ? 0 : 74;
}
