/* SPDX-License-Identifier: Apache-2.0 */
#include "config.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/err.h"
#include "base/file.h"
#include "tests/test.h"

static char folder[] = "file_test_XXXXXX";
static char path[64];

static int
make_folder(void **state)
{
    (void)state;
    if (mkdtemp(folder) == NULL)
        return -1;
    snprintf(path, sizeof path, "%s/f", folder);
    return 0;
}

static int
remove_folder(void **state)
{
    (void)state;
    unlink(path);
    return rmdir(folder);
}

static void
write_file(const void *p, size_t n)
{
    FILE *f = fopen(path, "w");

    assert_non_null(f);
    assert_int_equal(fwrite(p, 1, n, f), n);
    assert_int_equal(fclose(f), 0);
}

static void
test_read(void **state)
{
    struct err e = {0};
    size_t len = 99;
    char *p;

    (void)state;
    write_file("a\0b", 3);
    p = file_read(path, 3, &len, &e);
    assert_non_null(p);
    assert_int_equal(len, 3);
    assert_memory_equal(p, "a\0b\0", 4);
    free(p);
    assert_null(file_read(path, 2, &len, &e));
    assert_int_equal(e.code, ERR_INVALID);
    write_file("", 0);
    p = file_read(path, 0, &len, &e);
    assert_string_equal(p, "");
    assert_int_equal(len, 0);
    free(p);
}

static void
test_map(void **state)
{
    struct file_map m = {0};
    struct err e = {0};

    (void)state;
    write_file("mapped", 6);
    assert_int_equal(file_map(&m, path, &e), 0);
    assert_int_equal(m.len, 6);
    assert_memory_equal(m.p, "mapped", 6);
    file_unmap(&m);
    assert_null(m.p);
    file_unmap(&m);
    write_file("", 0);
    assert_int_equal(file_map(&m, path, &e), 0);
    assert_null(m.p);
    assert_int_equal(m.len, 0);
    file_unmap(&m);
}

static void
test_what_is_no_file(void **state)
{
    char missing[80];
    struct file_map m = {0};
    struct err e = {0};
    size_t len;

    (void)state;
    snprintf(missing, sizeof missing, "%s/no", folder);
    assert_null(file_read(missing, 10, &len, &e));
    assert_int_equal(e.code, ERR_NOT_FOUND);
    assert_non_null(strstr(e.text, missing));
    assert_int_equal(file_map(&m, missing, &e), -1);
    assert_int_equal(e.code, ERR_NOT_FOUND);
    assert_null(file_read(folder, 10, &len, &e));
    assert_int_equal(e.code, ERR_INVALID);
    assert_int_equal(file_map(&m, "/dev/null", &e), -1);
    assert_int_equal(e.code, ERR_INVALID);
}

static void
test_make_dir(void **state)
{
    static const char *const tails[] = {"", "/", "/a", "/a/", "/a/b/c", "//a///b//d//"};
    char p[128];
    struct stat st;
    struct err e = {0};
    const mode_t was = umask(022);

    (void)state;
    for (size_t i = 0; i < sizeof tails / sizeof tails[0]; i++) {
        snprintf(p, sizeof p, "%s%s", folder, tails[i]);
        assert_int_equal(file_make_dir(p, &e), 0);
        assert_int_equal(stat(p, &st), 0);
        assert_true(S_ISDIR(st.st_mode));
        assert_int_equal(file_make_dir(p, &e), 0); /* again */
    }
    assert_int_equal(st.st_mode & 07777, 0700);
    snprintf(p, sizeof p, "%s/a/b", folder);
    assert_int_equal(stat(p, &st), 0);
    assert_int_equal(st.st_mode & 07777, 0755);
    assert_int_equal(file_make_dir("/", &e), 0);

    write_file("x", 1);
    snprintf(p, sizeof p, "%s/below", path);
    assert_int_equal(file_make_dir(p, &e), -1);
    assert_int_equal(e.code, ERR_READ_ONLY);
    assert_non_null(strstr(e.text, path));
    assert_null(strstr(e.text, "below")); /* what cannot be, not what was asked for */
    assert_int_equal(file_make_dir(path, &e), -1);
    assert_int_equal(file_make_dir("/proc/nowhere/x", &e), -1);
    assert_string_equal(e.text, "/proc/nowhere: No such file or directory");
    umask(was);
    for (int i = 0; i < 4; i++) {
        static const char *const made[] = {"a/b/c", "a/b/d", "a/b", "a"};

        snprintf(p, sizeof p, "%s/%s", folder, made[i]);
        assert_int_equal(rmdir(p), 0);
    }
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_read),
        cmocka_unit_test(test_map),
        cmocka_unit_test(test_what_is_no_file),
        cmocka_unit_test(test_make_dir),
    };

    return cmocka_run_group_tests(tests, make_folder, remove_folder);
}
