/* folder.h: a temporary folder for a test program, removed when the program ends; files in it; and a loop that fails each
 * allocation in turn. */
#ifndef LR_TEST_FOLDER_H
#define LR_TEST_FOLDER_H

#include "lr_test.h"
#include <unistd.h>

static char lr_test_folder[512];

static inline void lr_test_folder_remove(void)
{
    lr_tree_remove(lr_test_folder);
}

/* The path of `name` in the test's folder. There are eight buffers, so a call may name several paths. */
static inline const char *in_folder(const char *name)
{
    static char paths[8][1024];
    static int next;
    if (lr_test_folder[0] == 0) {
        const char *tmp = getenv("TMPDIR");
        snprintf(lr_test_folder, sizeof lr_test_folder, "%s/lorarun-test-XXXXXX",
                 tmp != NULL && *tmp != 0 ? tmp : "/tmp");
        if (mkdtemp(lr_test_folder) == NULL)
            LR_TEST_FAIL("cannot make the folder %s", lr_test_folder);
        atexit(lr_test_folder_remove);
    }
    char *path = paths[next++ % 8];
    snprintf(path, sizeof paths[0], "%s/%s", lr_test_folder, name);
    return path;
}

/* Makes a file with these bytes in the folder; returns its path, as in_folder does. lr_file_write would sync the file to the disk,
 * which takes longer than most tests. */
static inline const char *write_in_folder(const char *name, const char *bytes, size_t size)
{
    const char *path = in_folder(name);
    FILE *f = fopen(path, "wb");
    const size_t written = f != NULL ? fwrite(bytes, 1, size, f) : 0;
    if (f == NULL || fclose(f) != 0 || written != size)
        LR_TEST_FAIL("cannot write %s", path);
    return path;
}

static inline const char *text_in_folder(const char *name, const char *text)
{
    return write_in_folder(name, text, strlen(text));
}

/* The number of names in the test's folder, including temporary files that were not removed. */
static inline int64_t names_in_folder(void)
{
    char *names;
    int64_t count;
    CHECK_INT(lr_dir_list(lr_test_folder, &names, &count), LR_OK);
    lr_free(names);
    return count;
}

/* Run `call` (an expression of a status) with its first allocation failing, then its second, and so on, until it
 * succeeds. */
#define FAIL_EACH_ALLOCATION(call)                                                                                     \
    do {                                                                                                               \
        int status_ = LR_ENOMEM;                                                                                       \
        int64_t failed_ = 0;                                                                                           \
        for (int64_t n_ = 0; status_ != LR_OK; n_++, failed_++) {                                                      \
            lr_memory fail_before_, fail_after_;                                                                       \
            lr_memory_stats(LR_CPU, &fail_before_);                                                                    \
            lr_memory_fail(n_, 1);                                                                                     \
            status_ = (call);                                                                                          \
            lr_memory_fail(-1, 0);                                                                                     \
            if (status_ == LR_OK)                                                                                      \
                break;                                                                                                 \
            CHECK_INT(status_, LR_ENOMEM);                                                                             \
            lr_memory_stats(LR_CPU, &fail_after_);                                                                     \
            CHECK_INT(fail_after_.host_objects, fail_before_.host_objects);                                            \
        }                                                                                                              \
        CHECK(failed_ > 0);                                                                                            \
    } while (0)

#endif
