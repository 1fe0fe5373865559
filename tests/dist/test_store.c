/* test_store.c: the store of a job: values between members, gets that wait, failures and how all members learn of them, members
 * that do not belong to the job, interrupts, memory that runs out. What strangers may try is in test_store_abuse.c. */
#define _GNU_SOURCE
#include "dist_store.h"
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

/* ---- values ------------------------------------------------------------------------------------------------------ */
TEST(values_come_back_as_they_were_set)
{
    lr_store_server *server = serve(NULL, 2);
    lr_store *a = join(server, NULL, 0, 2), *b = join(server, NULL, 1, 2);
    static char big[LR_STORE_VALUE];
    for (size_t i = 0; i < sizeof big; i++)
        big[i] = (char)(i * 2654435761u >> 13);
    static const int64_t sizes[] = {0, 1, 7, 4096, 65536 + 3, LR_STORE_VALUE - 1, LR_STORE_VALUE};
    for (size_t i = 0; i < LR_COUNT_OF(sizes); i++) {
        char *value = NULL;
        int64_t size = -1;
        CHECK_INT(lr_store_set(a, "key", big, sizes[i]), LR_OK);
        CHECK_INT(lr_store_get(b, "key", 0, &value, &size), LR_OK);
        CHECK_INT(size, sizes[i]);
        CHECK(memcmp(value, big, (size_t)size) == 0 && value[size] == 0);
        lr_free(value);
    }
    /* many keys, so that the table grows; some differ in one byte only */
    for (int i = 0; i < 500; i++) {
        char key[32], text[32];
        snprintf(key, sizeof key, "rank/%d", i);
        snprintf(text, sizeof text, "value %d", i * i);
        CHECK_INT(lr_store_set(i % 2 ? a : b, key, text, (int64_t)strlen(text)), LR_OK);
    }
    for (int i = 0; i < 500; i++) {
        char key[32], text[32];
        snprintf(key, sizeof key, "rank/%d", i);
        snprintf(text, sizeof text, "value %d", i * i);
        check_value(i % 3 ? a : b, key, text);
    }
    lr_store_close(a);
    lr_store_close(b);
    lr_store_server_stop(server);
}

TEST(bounds_are_checked_before_anything_is_sent)
{
    lr_store_server *server = serve(NULL, 1);
    lr_store *a = join(server, NULL, 0, 1);
    char key[LR_STORE_KEY + 2], *value = NULL;
    int64_t size = 0;
    memset(key, 'k', sizeof key);
    key[LR_STORE_KEY + 1] = 0;
    CHECK_INT(lr_store_set(a, key, "v", 1), LR_EINVAL);
    CHECK_HAS(lr_last_error(), "1025 bytes");
    CHECK_INT(lr_store_get(a, key, 0, &value, &size), LR_EINVAL);
    CHECK_INT(lr_store_add(a, "", 1, &size), LR_EINVAL);
    CHECK_INT(lr_store_set(a, "k", "v", -1), LR_EINVAL);
    CHECK_INT(lr_store_set(a, "k", "v", (int64_t)LR_STORE_VALUE + 1), LR_EINVAL);
    CHECK_HAS(lr_last_error(), "16777217 bytes");
    CHECK_INT(lr_store_get(a, "k", -1, &value, &size), LR_EINVAL);
    CHECK_INT(lr_store_get(a, "k", NAN, &value, &size), LR_EINVAL);
    key[LR_STORE_KEY] = 0;
    CHECK_INT(lr_store_set(a, key, "longest", 7), LR_OK);
    check_value(a, key, "longest");
    lr_store_close(a);
    lr_store_server_stop(server);
}

TEST(sums)
{
    lr_store_server *server = serve(NULL, 1);
    lr_store *a = join(server, NULL, 0, 1);
    int64_t sum = 0;
    CHECK_INT(lr_store_add(a, "n", 5, &sum), LR_OK);
    CHECK_INT(sum, 5);
    CHECK_INT(lr_store_add(a, "n", -12, &sum), LR_OK);
    CHECK_INT(sum, -7);
    check_value(a, "n", "-7");
    CHECK_INT(lr_store_set(a, "n", "9223372036854775800", 19), LR_OK);
    CHECK_INT(lr_store_add(a, "n", 7, &sum), LR_OK);
    CHECK(sum == INT64_MAX);
    CHECK_INT(lr_store_add(a, "n", 1, &sum), LR_EINVAL);
    CHECK_HAS(lr_last_error(), "'n'");
    static const char *const no_numbers[] = {"", "x", "1 ", "+1", "0x10", "99999999999999999999", "1e3"};
    for (size_t i = 0; i < LR_COUNT_OF(no_numbers); i++) {
        CHECK_INT(lr_store_set(a, "n", no_numbers[i], (int64_t)strlen(no_numbers[i])), LR_OK);
        CHECK_INT(lr_store_add(a, "n", 1, &sum), LR_EINVAL);
        CHECK_HAS(lr_last_error(), "not a number");
        check_value(a, "n", no_numbers[i]);
    }
    CHECK_INT(lr_store_set(a, "n", "1\0", 2), LR_OK);
    CHECK_INT(lr_store_add(a, "n", 1, &sum), LR_EINVAL);
    CHECK(sum == INT64_MAX); /* the value after the last success */
    lr_store_close(a);
    lr_store_server_stop(server);
}

/* ---- waiting ----------------------------------------------------------------------------------------------------- */
TEST(a_get_waits_for_its_key)
{
    lr_store_server *server = serve(NULL, 2);
    lr_store *a = join(server, NULL, 0, 2), *b = join(server, NULL, 1, 2);
    getter g = {.store = b, .key = "late", .timeout = 60};
    get_start(&g);
    CHECK_INT(lr_store_set(a, "other", "1", 1), LR_OK);
    sleep_ms(100);
    CHECK_INT(lr_store_set(a, "late", "here", 4), LR_OK);
    get_end(&g);
    CHECK_INT(g.status, LR_OK);
    CHECK_STR(g.value, "here");
    lr_free(g.value);
    g = (getter){.store = b, .key = "count", .timeout = 60}; /* add wakes a get, too */
    get_start(&g);
    int64_t sum;
    sleep_ms(50);
    CHECK_INT(lr_store_add(a, "count", 3, &sum), LR_OK);
    get_end(&g);
    CHECK_INT(g.status, LR_OK);
    CHECK_STR(g.value, "3");
    lr_free(g.value);
    lr_store_close(a);
    lr_store_close(b);
    lr_store_server_stop(server);
}

TEST(a_get_ends_with_its_time)
{
    lr_store_server *server = serve(NULL, 1);
    lr_store *a = join(server, NULL, 0, 1);
    char *value = NULL;
    int64_t size = 0;
    CHECK_INT(lr_store_get(a, "never", 0, &value, &size), LR_ETIMEOUT);
    CHECK_STR(lr_last_error(), "key 'never' is not set");
    const double start = lr_time();
    CHECK_INT(lr_store_get(a, "never", 0.3, &value, &size), LR_ETIMEOUT);
    CHECK_STR(lr_last_error(), "nobody set key 'never' within 0.3 s");
    CHECK(lr_time() - start >= 0.3);
    CHECK(value == NULL);
    CHECK_INT(lr_store_set(a, "never", "now", 3), LR_OK); /* the connection still works */
    check_value(a, "never", "now");
    lr_store_close(a);
    lr_store_server_stop(server);
}

TEST(an_interrupt_ends_a_waiting_get_and_nothing_else)
{
    lr_store_server *server = serve(NULL, 2);
    lr_store *a = join(server, NULL, 0, 2), *b = join(server, NULL, 1, 2);
    static char big[LR_STORE_VALUE];
    char *value = NULL;
    int64_t size = 0;
    for (int i = 0; i < 4; i++) {
        interrupt_after(20 * i + 1);
        CHECK_INT(lr_store_get(b, "soon", 600, &value, &size), LR_EINTERRUPTED);
        interrupt_off();
        CHECK_HAS(lr_last_error(), "soon");
        if (i == 3) /* the reply comes although no call waits for it: the next call discards it */
            CHECK_INT(lr_store_set(a, "soon", big, sizeof big), LR_OK);
        CHECK_INT(lr_store_set(b, "after", big, sizeof big), LR_OK);
        CHECK_INT(lr_store_get(b, "after", 0, &value, &size), LR_OK);
        CHECK_INT(size, sizeof big);
        lr_free(value);
    }
    lr_store_close(a);
    lr_store_close(b);
    lr_store_server_stop(server);
}

/* ---- failure ----------------------------------------------------------------------------------------------------- */
TEST(a_failure_reaches_waiting_calls_later_calls_and_new_members)
{
    lr_store_server *server = serve(NULL, 3);
    lr_store *a = join(server, NULL, 0, 3), *b = join(server, NULL, 1, 3), *late = NULL;
    lr_store *observer = join(server, NULL, LR_STORE_OBSERVER, 3);
    getter g = {.store = b, .key = "never", .timeout = 600};
    get_start(&g);
    CHECK_INT(lr_store_set(a, "k", "v", 1), LR_OK);
    CHECK_INT(lr_store_fail(observer, "rank 2 on node7: killed by signal 9"), LR_OK);
    get_end(&g);
    CHECK_INT(g.status, LR_EPEER);
    CHECK_STR(g.error, "rank 2 on node7: killed by signal 9");
    CHECK_INT(lr_store_fail(a, "a later reason"), LR_OK);
    char *value = NULL;
    int64_t n = 0;
    CHECK_INT(lr_store_get(a, "k", 0, &value, &n), LR_EPEER);
    CHECK_STR(lr_last_error(), "rank 2 on node7: killed by signal 9");
    CHECK_INT(lr_store_set(b, "k", "v", 1), LR_EPEER);
    CHECK_INT(lr_store_add(b, "n", 1, &n), LR_EPEER);
    const lr_store_member who = {.rank = 2, .world_size = 3};
    CHECK_INT(lr_store_connect(&late, "127.0.0.1", lr_store_server_port(server), &who, 30), LR_EPEER);
    CHECK_STR(lr_last_error(), "rank 2 on node7: killed by signal 9");
    lr_store_close(a);
    lr_store_close(b);
    lr_store_close(observer);
    lr_store_server_stop(server);
}

TEST(a_reset_starts_over)
{
    lr_store_server *server = serve("s", 2);
    const int port = lr_store_server_port(server);
    lr_store *a = join(server, "s", 0, 2), *b = join(server, "s", 1, 2), *c = NULL;
    CHECK_INT(lr_store_set(a, "k", "old", 3), LR_OK);
    getter g = {.store = b, .key = "never", .timeout = 600};
    get_start(&g);
    sleep_ms(50);
    CHECK_INT(lr_store_server_reset(server, 1), LR_OK);
    get_end(&g);
    CHECK_INT(g.status, LR_EPEER);
    CHECK_INT(lr_store_set(a, "k", "older", 5), LR_EPEER);
    CHECK_HAS(lr_last_error(), "lost");
    /* a late member of the old generation does no harm */
    lr_store_member who = {.secret = "s", .rank = 0, .world_size = 2, .generation = 0};
    CHECK_INT(lr_store_connect(&c, "127.0.0.1", port, &who, 30), LR_EREFUSED);
    CHECK_HAS(lr_last_error(), "generation 1");
    who.generation = 1;
    CHECK_INT(lr_store_connect(&c, "127.0.0.1", port, &who, 30), LR_OK);
    char *value = NULL;
    int64_t size = 0;
    CHECK_INT(lr_store_get(c, "k", 0, &value, &size), LR_ETIMEOUT);
    CHECK_INT(lr_store_fail(c, "again"), LR_OK);
    CHECK_INT(lr_store_server_reset(server, 2), LR_OK);
    lr_store_close(c);
    who.generation = 2;
    CHECK_INT(lr_store_connect(&c, "127.0.0.1", port, &who, 30), LR_OK);
    CHECK_INT(lr_store_set(c, "k", "new", 3), LR_OK);
    CHECK_INT(lr_store_server_reset(server, -1), LR_EINVAL);
    lr_store_close(a);
    lr_store_close(b);
    lr_store_close(c);
    lr_store_server_stop(server);
}

TEST(the_end_of_the_server_is_noticed)
{
    lr_store_server *server = serve(NULL, 2);
    const int port = lr_store_server_port(server);
    lr_store *a = join(server, NULL, 0, 2), *b = join(server, NULL, 1, 2);
    getter g = {.store = b, .key = "never", .timeout = 600};
    get_start(&g);
    sleep_ms(50);
    lr_store_server_stop(server);
    get_end(&g);
    CHECK_INT(g.status, LR_EPEER);
    char expected[64];
    snprintf(expected, sizeof expected, "127.0.0.1:%d", port);
    CHECK_HAS(g.error, expected);
    for (int i = 0; i < 2; i++) {
        CHECK_INT(lr_store_set(a, "k", "v", 1), LR_EPEER);
        CHECK_HAS(lr_last_error(), expected);
    }
    lr_store_close(a);
    lr_store_close(b);
}

/* ---- who may join ------------------------------------------------------------------------------------------------ */
/* A member that knows the secret but differs in something: it gets the reason, and so do all others, now and later. */
static void check_fails_job(const lr_store_hello *wrong, const char *expected)
{
    lr_store_server *server = serve("right", 4);
    lr_store *a = join(server, "right", 0, 4), *b = join(server, "right", 1, 4), *late = NULL;
    CHECK_INT(lr_store_server_reset(server, 5), LR_OK);
    lr_store_close(a);
    lr_store_close(b);
    lr_store_member who = {.secret = "right", .rank = 0, .world_size = 4, .generation = 5};
    CHECK_INT(lr_store_connect(&a, "127.0.0.1", lr_store_server_port(server), &who, 30), LR_OK);
    who.rank = 1;
    CHECK_INT(lr_store_connect(&b, "127.0.0.1", lr_store_server_port(server), &who, 30), LR_OK);
    getter g = {.store = b, .key = "never", .timeout = 600};
    get_start(&g);
    sleep_ms(50);
    char text[LR_STORE_TEXT + 1];
    CHECK_INT(raw_join(lr_store_server_port(server), "right", wrong, text), LR_EREFUSED);
    CHECK_STR(text, expected);
    get_end(&g);
    CHECK_INT(g.status, LR_EPEER);
    CHECK_STR(g.error, expected);
    CHECK_INT(lr_store_set(a, "k", "v", 1), LR_EPEER);
    CHECK_STR(lr_last_error(), expected);
    who.rank = 2;
    CHECK_INT(lr_store_connect(&late, "127.0.0.1", lr_store_server_port(server), &who, 30), LR_EPEER);
    CHECK_STR(lr_last_error(), expected);
    lr_store_close(a);
    lr_store_close(b);
    lr_store_server_stop(server);
}

TEST(a_member_that_differs_fails_the_job_on_all_sides)
{
    lr_store_hello h = {.version = LR_VERSION, .rank = 2, .world_size = 8, .generation = 5};
    check_fails_job(&h,
                    "rank 2 at 127.0.0.1 expects 8 ranks, this job has 4; start every machine with the same settings");
    h.world_size = 4;
    h.generation = 6;
    check_fails_job(&h,
                    "rank 2 at 127.0.0.1 is of generation 6, this job is in generation 5; restart it on all machines");
    h.generation = 5;
    h.rank = 4;
    check_fails_job(&h, "rank 4 at 127.0.0.1 is not one of this job's ranks, which are 0 to 3");
    h.rank = -2;
    check_fails_job(&h, "rank -2 at 127.0.0.1 is not one of this job's ranks, which are 0 to 3");
    h.rank = 1;
    check_fails_job(&h, "two processes are rank 1, one at 127.0.0.1 and one at 127.0.0.1; give each a rank of its own");
    h = (lr_store_hello){.version = "9.9\n9", .rank = -1, .world_size = 1, .generation = 5};
    check_fails_job(&h, "a launcher at 127.0.0.1 runs lorarun 9.9?9, this job runs " LR_VERSION
                        "; install one version on all machines");
}

TEST(the_client_says_what_the_server_said)
{
    lr_store_server *server = serve("right", 4);
    lr_store *c = NULL;
    const lr_store_member who = {.secret = "right", .rank = 0, .world_size = 8};
    CHECK_INT(lr_store_connect(&c, "127.0.0.1", lr_store_server_port(server), &who, 30), LR_EREFUSED);
    CHECK_HAS(lr_last_error(), "expects 8 ranks, this job has 4");
    lr_store_server_stop(server);
}

TEST(a_client_without_the_secret_changes_nothing)
{
    lr_store_server *server = serve("right", 2);
    lr_store *a = join(server, "right", 0, 2), *b = NULL;
    static const char *const secrets[] = {NULL, "", "wrong", "righ", "right ", "Right"};
    for (size_t i = 0; i < LR_COUNT_OF(secrets); i++) {
        /* its world size is wrong, too, which must not matter */
        const lr_store_member who = {.secret = secrets[i], .rank = 1, .world_size = i % 2 ? 2 : 3};
        CHECK_INT(lr_store_connect(&b, "127.0.0.1", lr_store_server_port(server), &who, 30), LR_EREFUSED);
        CHECK_HAS(lr_last_error(), "the secret differs");
    }
    CHECK_INT(lr_store_set(a, "k", "v", 1), LR_OK);
    b = join(server, "right", 1, 2);
    check_value(b, "k", "v");
    lr_store_close(a);
    lr_store_close(b);
    lr_store_server_stop(server);
    server = serve(NULL, 2); /* a server without a secret refuses a client with one */
    const lr_store_member who = {.secret = "mine alone", .rank = 1, .world_size = 2};
    CHECK_INT(lr_store_connect(&b, "127.0.0.1", lr_store_server_port(server), &who, 30), LR_EREFUSED);
    CHECK_HAS(lr_last_error(), "the secret differs");
    lr_store_server_stop(server);
}

TEST(a_rank_is_free_again_when_its_connection_ends)
{
    lr_store_server *server = serve(NULL, 2);
    for (int i = 0; i < 50; i++) {
        lr_store *a = join(server, NULL, 1, 2);
        CHECK_INT(lr_store_set(a, "k", "v", 1), LR_OK);
        lr_store_close(a);
    }
    lr_store_server_stop(server);
}

TEST(addresses)
{
    lr_store_server *server = NULL;
    CHECK_INT(lr_store_serve(&server, "0.0.0.0", 0, NULL, 1), LR_EINVAL);
    CHECK_HAS(lr_last_error(), "needs a secret");
    CHECK_HAS(lr_last_error(), "127.0.0.1");
    CHECK_INT(lr_store_serve(&server, "0.0.0.0", 0, "", 1), LR_EINVAL);
    CHECK_INT(lr_store_serve(&server, "::", 0, NULL, 1), LR_EINVAL);
    CHECK_INT(lr_store_serve(&server, "", 0, "s", 1), LR_EINVAL);
    CHECK_INT(lr_store_serve(&server, "127.0.0.1", 65536, "s", 1), LR_EINVAL);
    CHECK_INT(lr_store_serve(&server, "127.0.0.1", 0, "s", 0), LR_EINVAL);
    CHECK_INT(lr_store_serve(&server, "127.0.0.1", 0, "s", LR_STORE_RANKS + 1), LR_EINVAL);
    CHECK_INT(lr_store_serve(&server, "no such host.invalid", 0, "s", 1), LR_EINVAL);
    CHECK_HAS(lr_last_error(), "no such host.invalid");
    CHECK(server == NULL);
    static const char *const pairs[][2] = {{"127.0.0.1", "127.0.0.1"},
                                           {"127.0.0.2", "127.0.0.2"},
                                           {"0.0.0.0", "127.0.0.1"},
                                           {"localhost", "localhost"},
                                           {"::1", "::1"},
                                           {"::", "127.0.0.1"},
                                           {"::", "::1"}};
    for (size_t i = 0; i < LR_COUNT_OF(pairs); i++) {
        const int status = lr_store_serve(&server, pairs[i][0], 0, "s", 1);
        if (status == LR_EIO && strchr(pairs[i][0], ':') != NULL) {
            printf("    SKIPPED: no IPv6 here: %s\n", lr_last_error());
            continue;
        }
        CHECK_INT(status, LR_OK);
        lr_store_server *second = NULL;
        CHECK_INT(lr_store_serve(&second, pairs[i][0], lr_store_server_port(server), "s", 1), LR_EIO);
        CHECK_HAS(lr_last_error(), "in use");
        lr_store *a = NULL;
        const lr_store_member who = {.secret = "s", .world_size = 1};
        CHECK_INT(lr_store_connect(&a, pairs[i][1], lr_store_server_port(server), &who, 30), LR_OK);
        CHECK_INT(lr_store_set(a, "k", "v", 1), LR_OK);
        lr_store_close(a);
        lr_store_server_stop(server);
        server = NULL;
    }
}

TEST(connecting_is_tried_again_until_its_time_is_over)
{
    lr_store_server *server = serve(NULL, 1);
    const int port = lr_store_server_port(server);
    lr_store_server_stop(server);
    lr_store *a = NULL;
    lr_store_member who = {.world_size = 1};
    char where[64];
    snprintf(where, sizeof where, "127.0.0.1:%d", port);
    CHECK_INT(lr_store_connect(&a, "127.0.0.1", port, &who, 0.3), LR_ETIMEOUT);
    CHECK_HAS(lr_last_error(), where);
    CHECK_HAS(lr_last_error(), "refused");
    CHECK(a == NULL);
    CHECK_INT(lr_store_connect(&a, "no such host.invalid", port, &who, 30), LR_ENOTFOUND);
    CHECK_HAS(lr_last_error(), "no such host.invalid");
    joiner j = {.port = port, .who = who};
    join_start(&j);
    sleep_ms(300);
    CHECK_INT(lr_store_serve(&server, "127.0.0.1", port, NULL, 1), LR_OK);
    join_end(&j);
    CHECK_INT(j.status, LR_OK);
    lr_store_close(j.store);
    lr_store_server_stop(server);
    interrupt_after(50);
    CHECK_INT(lr_store_connect(&a, "127.0.0.1", port, &who, 600), LR_EINTERRUPTED);
    interrupt_off();
    who.rank = 1;
    CHECK_INT(lr_store_connect(&a, "127.0.0.1", port, &who, 30), LR_EINVAL);
    who = (lr_store_member){.world_size = 1, .generation = -1};
    CHECK_INT(lr_store_connect(&a, "127.0.0.1", port, &who, 30), LR_EINVAL);
    who.generation = 0;
    CHECK_INT(lr_store_connect(&a, "127.0.0.1", 0, &who, 30), LR_EINVAL);
    CHECK_INT(lr_store_connect(&a, "", port, &who, 30), LR_EINVAL);
    CHECK_INT(lr_store_connect(&a, "127.0.0.1", port, &who, -1), LR_EINVAL);
}

TEST(no_descriptor_is_inherited)
{
    lr_store_server *server = serve(NULL, 1);
    lr_store *a = join(server, NULL, 0, 1);
    int open = 0;
    for (int fd = 3; fd < 256; fd++) {
        const int flags = fcntl(fd, F_GETFD);
        if (flags < 0)
            continue;
        char path[64], name[64] = "";
        snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
        if (readlink(path, name, sizeof name - 1) < 0 || strncmp(name, "socket:", 7) != 0)
            if (strstr(name, "eventpoll") == NULL && strstr(name, "eventfd") == NULL)
                continue;
        open++;
        if (!(flags & FD_CLOEXEC))
            LR_TEST_FAIL("descriptor %d (%s) is not closed by exec", fd, name);
    }
    CHECK(open >= 5); /* the listener, epoll, the eventfd and two ends of a connection */
    lr_store_close(a);
    lr_store_server_stop(server);
}

/* ---- memory ------------------------------------------------------------------------------------------------------ */
/* Serve, join, and use everything. Each call succeeds or returns LR_ENOMEM; while there is no memory, a connection may also be
 * lost. */
static int whole_story(void)
{
    lr_store_server *server = NULL;
    lr_store *a = NULL;
    char *value = NULL;
    int64_t n = 0;
    int status = lr_store_serve(&server, "127.0.0.1", 0, "s", 2);
    if (status != LR_OK)
        return status;
    const lr_store_member who = {.secret = "s", .rank = 0, .world_size = 2};
    status = lr_store_connect(&a, "127.0.0.1", lr_store_server_port(server), &who, 30);
    if (status == LR_OK)
        status = lr_store_set(a, "k", "value", 5);
    if (status == LR_OK)
        status = lr_store_get(a, "k", 1, &value, &n);
    if (status == LR_OK) {
        lr_free(value);
        status = lr_store_add(a, "n", 1, &n);
    }
    if (status == LR_OK)
        status = lr_store_add(a, "n", 1, &n);
    if (status == LR_OK)
        status = lr_store_get(a, "none", 0.01, &value, &n) == LR_ETIMEOUT ? LR_OK : LR_ENOMEM;
    if (status == LR_OK)
        status = lr_store_server_reset(server, 1);
    lr_store_close(a);
    lr_store_server_stop(server);
    return status;
}

static double processor_seconds(const struct rusage *r)
{
    return (double)(r->ru_utime.tv_sec + r->ru_stime.tv_sec) +
           1e-6 * (double)(r->ru_utime.tv_usec + r->ru_stime.tv_usec);
}

/* A launcher forks often, and between fork and exec the child holds every descriptor too. The server must get no events for
 * clients that it has dropped: it would use freed memory, and never sleep. */
TEST(a_client_that_a_forked_child_holds_is_gone)
{
    int hold[2];
    char greeting[LR_STORE_GREETING], byte;
    lr_store_server *server = serve(NULL, 1);
    const int client = raw_connect(lr_store_server_port(server));
    CHECK_INT(raw_read(client, greeting, sizeof greeting), sizeof greeting);
    CHECK_INT(pipe2(hold, O_CLOEXEC), 0);
    const pid_t child = fork();
    if (child == 0) { /* lives until the parent closes its end */
        close(hold[1]);
        (void)!read(hold[0], &byte, 1);
        _exit(0);
    }
    close(hold[0]);
    /* the child holds this end too, so closing it would not end the connection */
    const int shut = shutdown(client, SHUT_RDWR);
    close(client);
    sleep_ms(100);
    struct rusage before, after;
    getrusage(RUSAGE_SELF, &before);
    sleep_ms(300);
    getrusage(RUSAGE_SELF, &after);
    close(hold[1]);
    const pid_t ended = waitpid(child, NULL, 0);
    lr_store_server_stop(server);
    CHECK(child > 0);
    CHECK_INT(ended, child);
    CHECK_INT(shut, 0);
    CHECK(processor_seconds(&after) - processor_seconds(&before) < 0.15);
}

TEST(memory_that_runs_out_is_only_an_error)
{
    const int64_t before = lr_memory_attempts();
    CHECK_INT(whole_story(), LR_OK);
    const int64_t attempts = lr_memory_attempts() - before;
    CHECK(attempts > 10);
    int failed = 0;
    for (int64_t i = 0; i < attempts; i++) {
        lr_memory_fail(i, 1);
        const int status = whole_story();
        lr_memory_fail(-1, 0);
        if (status != LR_OK && status != LR_ENOMEM && status != LR_EPEER)
            LR_TEST_FAIL("allocation %lld of %lld failed: %s", (long long)i, (long long)attempts,
                         lr_status_name(status));
        failed += status != LR_OK;
    }
    CHECK(failed > attempts / 2);
    CHECK_INT(whole_story(), LR_OK);
}

/* There is no memory for a while: the job can still fail, with its reason. */
TEST(a_job_fails_without_memory)
{
    lr_store_server *server = serve(NULL, 2);
    lr_store *a = join(server, NULL, 0, 2), *b = join(server, NULL, 1, 2);
    lr_memory_fail(0, INT64_MAX / 2);
    const int set = lr_store_set(a, "k", "v", 1), fail = lr_store_fail(a, "why");
    char *value = NULL;
    int64_t size = 0;
    const int get = lr_store_get(b, "k", 10, &value, &size);
    char text[256];
    snprintf(text, sizeof text, "%s", lr_last_error());
    lr_memory_fail(-1, 0);
    CHECK_INT(set, LR_ENOMEM);
    CHECK_INT(fail, LR_OK);
    CHECK_INT(get, LR_EPEER);
    CHECK_HAS(text, "no memory for its reason");
    lr_store_close(a);
    lr_store_close(b);
    lr_store_server_stop(server);
}

TEST_MAIN()
