/* lr_test.h: the whole test framework for C tests.
 *
 *   TEST(name) { CHECK(x > 0); CHECK_INT(lr_f(), LR_OK); CHECK_STR(lr_last_error(), "..."); } TEST_MAIN()
 *
 * A failed check prints both operands and the place, and ends its test; the others go on. After each test there must be no
 * tensor and no more small allocations than before it: a leak fails the test that made it. The program prints "N passed, N
 * failed" and exits with 1 if a test failed or none ran. */
#ifndef LR_TEST_H
#define LR_TEST_H

#include "core/core.h"
#include <math.h>
#include <setjmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct lr_test {
    const char *name;
    void (*run)(void);
    struct lr_test *next;
} lr_test;

static lr_test *lr_tests;
static jmp_buf lr_test_abort;

#define TEST(id)                                                                                                       \
    static void id(void);                                                                                              \
    __attribute__((constructor)) static void register_##id(void)                                                       \
    {                                                                                                                  \
        static lr_test t = {#id, id, NULL};                                                                            \
        lr_test **p = &lr_tests;                                                                                       \
        while (*p != NULL)                                                                                             \
            p = &(*p)->next;                                                                                           \
        *p = &t;                                                                                                       \
    }                                                                                                                  \
    static void id(void)

#define LR_TEST_FAIL(...)                                                                                              \
    do {                                                                                                               \
        printf("    %s:%d: ", __FILE__, __LINE__);                                                                     \
        printf(__VA_ARGS__);                                                                                           \
        printf("\n    last error: %s\n", lr_last_error());                                                             \
        longjmp(lr_test_abort, 1);                                                                                     \
    } while (0)

#define CHECK(x)                                                                                                       \
    do {                                                                                                               \
        if (!(x))                                                                                                      \
            LR_TEST_FAIL("not true: %s", #x);                                                                          \
    } while (0)

#define CHECK_INT(a, b)                                                                                                \
    do {                                                                                                               \
        const long long a_ = (long long)(a), b_ = (long long)(b);                                                      \
        if (a_ != b_)                                                                                                  \
            LR_TEST_FAIL("%s is %lld, expected %s = %lld", #a, a_, #b, b_);                                            \
    } while (0)

#define CHECK_STR(a, b)                                                                                                \
    do {                                                                                                               \
        const char *a_ = (a), *b_ = (b);                                                                               \
        if (a_ == NULL || b_ == NULL || strcmp(a_, b_) != 0)                                                           \
            LR_TEST_FAIL("%s is \"%s\", expected \"%s\"", #a, a_ ? a_ : "(null)", b_ ? b_ : "(null)");                 \
    } while (0)

/* b occurs in a: for error messages. */
#define CHECK_HAS(a, b)                                                                                                \
    do {                                                                                                               \
        const char *a_ = (a), *b_ = (b);                                                                               \
        if (a_ == NULL || strstr(a_, b_) == NULL)                                                                      \
            LR_TEST_FAIL("%s is \"%s\", which lacks \"%s\"", #a, a_ ? a_ : "(null)", b_);                              \
    } while (0)

#define CHECK_NEAR(a, b, tolerance)                                                                                    \
    do {                                                                                                               \
        const double a_ = (a), b_ = (b), t_ = (tolerance);                                                             \
        if (!(fabs(a_ - b_) <= t_))                                                                                    \
            LR_TEST_FAIL("%s is %.9g, expected %s = %.9g within %.3g", #a, a_, #b, b_, t_);                            \
    } while (0)

static int64_t lr_test_tensors(void)
{
    lr_memory cpu, cuda;
    lr_memory_stats(LR_CPU, &cpu);
    lr_memory_stats(LR_CUDA, &cuda);
    return cpu.live_storages + cuda.live_storages;
}

static const char *lr_test_name; /* of the test that runs */

/* Run one test; 1: it passed. A function of its own, because after longjmp the locals of the function with setjmp are
 * indeterminate. */
static int lr_test_run(const lr_test *t)
{
    const int64_t tensors_before = lr_test_tensors();
    lr_memory before, after;
    lr_memory_stats(LR_CPU, &before);
    if (setjmp(lr_test_abort) != 0)
        return 0;
    lr_test_name = t->name;
    t->run();
    lr_memory_stats(LR_CPU, &after);
    const int64_t tensors = lr_test_tensors() - tensors_before, objects = after.host_objects - before.host_objects;
    if (tensors == 0 && objects == 0)
        return 1;
    printf("    leaked %lld tensors, %lld small allocations\n", (long long)tensors, (long long)objects);
    return 0;
}

static int lr_test_main(int argc, char **argv)
{
    int passed = 0, failed = 0;
    for (const lr_test *t = lr_tests; t != NULL; t = t->next) {
        if (argc > 1 && strstr(t->name, argv[1]) == NULL)
            continue;
        const int ok = lr_test_run(t);
        printf("%s %s\n", ok ? "ok    " : "FAILED", t->name);
        fflush(stdout);
        ok ? passed++ : failed++;
    }
    printf("%d passed, %d failed\n", passed, failed);
    return failed > 0 || passed == 0;
}

#define TEST_MAIN()                                                                                                    \
    int main(int argc, char **argv)                                                                                    \
    {                                                                                                                  \
        return lr_test_main(argc, argv);                                                                               \
    }

#endif
