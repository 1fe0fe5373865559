/* folder.h: a folder of its own for a test program, removed when the program ends; and a loop that fails each
 * allocation in turn. */
#ifndef LR_TEST_FOLDER_H
#define LR_TEST_FOLDER_H

#include "lr_test.h"
#include <unistd.h>

static char lr_test_folder[64];

static inline void lr_test_folder_remove(void)
{
    lr_tree_remove(lr_test_folder);
}

/* The path of `name` in the test's folder; one of eight buffers, so that a call may name several. */
static inline const char *in_folder(const char *name)
{
    static char paths[8][512];
    static int next;
    if (lr_test_folder[0] == 0) {
        strcpy(lr_test_folder, "/tmp/lorarun-test-XXXXXX");
        if (mkdtemp(lr_test_folder) == NULL)
            LR_TEST_FAIL("cannot make a folder in /tmp");
        atexit(lr_test_folder_remove);
    }
    char *path = paths[next++ % 8];
    snprintf(path, sizeof paths[0], "%s/%s", lr_test_folder, name);
    return path;
}

/* How many names are in the test's folder: a temporary file that was left behind counts. */
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
