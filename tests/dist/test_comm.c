/* test_comm.c: the collectives in C, where ranks can be threads of one process. Nothing is left behind, even if memory runs out
 * at any place; another thread may abort; tensors on CUDA without NCCL are an error; strangers may connect to the ports of ranks
 * that meet. What the collectives compute is checked in test_comm.lua, between processes. */
#include "core/tensor.h"
#include "dist/comm.h"
#include "lr_test.h"
#include <netinet/in.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { RANKS = 2, LARGE = 50000 };

typedef struct rank_thread {
    pthread_t thread;
    int rank, port;
    double timeout;
    int (*work)(lr_comm *c, int rank, lr_tensor *t);
    lr_tensor *tensor;     /* made by the main thread, since tensors are allocated by one thread */
    lr_comm *_Atomic comm; /* from joining until freed */
    int joined, status;    /* of joining and of the work */
    char error[512];
} rank_thread;

static int join_and_work(rank_thread *r)
{
    const lr_store_member who = {.rank = r->rank, .world_size = RANKS};
    const lr_comm_options options = {
        .group = "0", .host = "127.0.0.1", .timeout = r->timeout, .rank = r->rank, .world_size = RANKS};
    lr_store *store = NULL;
    lr_comm *c = NULL;
    int status = lr_store_connect(&store, "127.0.0.1", r->port, &who, r->timeout);
    if (status == LR_OK)
        status = lr_comm_new(&c, store, &options);
    lr_store_close(store);
    r->joined = status;
    if (status != LR_OK) {
        (void)snprintf(r->error, sizeof r->error, "%s", lr_last_error());
        return status;
    }
    atomic_store(&r->comm, c);
    status = r->work(c, r->rank, r->tensor);
    (void)snprintf(r->error, sizeof r->error, "%s", lr_last_error());
    lr_comm_free(c);
    return status;
}

static void *run_rank(void *context)
{
    rank_thread *r = context;
    r->status = join_and_work(r);
    return NULL;
}

static void (*between)(int store_port); /* called after rank 0 has started and before the others, unless NULL */

/* Start the ranks, each with a tensor of LARGE floats of value rank + 1; join_ranks waits for them. */
static lr_store_server *start_ranks(rank_thread ranks[RANKS], int (*work)(lr_comm *, int, lr_tensor *), double timeout)
{
    const int64_t shape = LARGE;
    lr_store_server *server = NULL;
    memset(ranks, 0, RANKS * sizeof *ranks);
    int status = lr_store_serve(&server, "127.0.0.1", 0, NULL, RANKS);
    for (int i = 0; i < RANKS && status == LR_OK; i++) {
        status = lr_tensor_new(&ranks[i].tensor, LR_F32, 1, &shape, LR_CPU, "operand");
        if (status == LR_OK)
            status = lr_tensor_fill(ranks[i].tensor, i + 1);
    }
    if (status != LR_OK) {
        for (int i = 0; i < RANKS; i++)
            lr_tensor_destroy(ranks[i].tensor);
        lr_store_server_stop(server);
        return NULL;
    }
    for (int i = 0; i < RANKS; i++) {
        ranks[i].rank = i;
        ranks[i].port = lr_store_server_port(server);
        ranks[i].timeout = timeout;
        ranks[i].work = work;
        if (pthread_create(&ranks[i].thread, NULL, run_rank, &ranks[i]) != 0)
            abort();
        if (i == 0 && between != NULL)
            between(ranks[0].port);
    }
    return server;
}

static void join_ranks(rank_thread ranks[RANKS], lr_store_server *server)
{
    for (int i = 0; i < RANKS; i++)
        (void)pthread_join(ranks[i].thread, NULL);
    for (int i = 0; i < RANKS; i++)
        lr_tensor_destroy(ranks[i].tensor);
    lr_store_server_stop(server);
}

/* ---- nothing left behind --------------------------------------------------------------------------------------------------- */
static int work_large(lr_comm *c, int rank, lr_tensor *t)
{
    int64_t sizes[RANKS], size;
    char *bytes = NULL;
    const float *values = t->data;
    int status = lr_comm_all_reduce(c, t, LR_SUM);
    if (status == LR_OK && (values[0] != 3 || values[LARGE - 1] != 3))
        status = lr_fail(LR_EINTERNAL, "the sum is %g", values[0]);
    if (status == LR_OK)
        status = lr_comm_all_gather_bytes(c, values, (rank + 1) * 10000, &bytes, sizes);
    if (status == LR_OK) {
        status = sizes[0] == 10000 && sizes[1] == 20000 ? LR_OK : lr_fail(LR_EINTERNAL, "wrong sizes");
        lr_free(bytes);
    }
    if (status == LR_OK)
        status = lr_comm_broadcast_bytes(c, values, 5000, 1, &bytes, &size);
    if (status == LR_OK) {
        status = size == 5000 ? LR_OK : lr_fail(LR_EINTERNAL, "wrong size");
        lr_free(bytes);
    }
    return status;
}

TEST(ranks_leave_nothing_behind)
{
    rank_thread ranks[RANKS];
    lr_store_server *server = start_ranks(ranks, work_large, 60);
    CHECK(server != NULL);
    join_ranks(ranks, server);
    for (int i = 0; i < RANKS; i++) {
        if (ranks[i].status != LR_OK)
            printf("    rank %d: %s\n", i, ranks[i].error);
        CHECK_INT(ranks[i].status, LR_OK);
    }
}

/* Each allocation fails once: the ranks end, with success or an error, and nothing is left (which lr_test.h checks). */
TEST(every_allocation_may_fail)
{
    rank_thread ranks[RANKS];
    const int64_t before = lr_memory_attempts();
    lr_store_server *server = start_ranks(ranks, work_large, 60);
    CHECK(server != NULL);
    join_ranks(ranks, server);
    const int64_t attempts = lr_memory_attempts() - before;
    int failed = 0;
    for (int64_t k = 0; k < attempts; k++) {
        lr_memory_fail(k, 1);
        server = start_ranks(ranks, work_large, 0.35); /* a rank that waits for one that could not join gives up soon */
        if (server != NULL)
            join_ranks(ranks, server);
        lr_memory_fail(-1, 0);
        failed += server == NULL || ranks[0].status != LR_OK || ranks[1].status != LR_OK;
    }
    CHECK(failed > attempts / 2);
}

/* ---- aborting ------------------------------------------------------------------------------------------------------------- */
static atomic_bool released; /* rank 1 may go on */

/* What rank 0 sent before it was aborted may still satisfy the next collective of rank 1, but no further one. */
static int work_waiting(lr_comm *c, int rank, lr_tensor *t)
{
    (void)t;
    while (rank == 1 && !atomic_load(&released))
        (void)sched_yield();
    const int status = lr_comm_barrier(c);
    return status == LR_OK ? lr_comm_barrier(c) : status;
}

TEST(abort_ends_a_wait)
{
    rank_thread ranks[RANKS];
    atomic_store(&released, false);
    lr_store_server *server = start_ranks(ranks, work_waiting, 60);
    CHECK(server != NULL);
    const double deadline = lr_time() + 60;
    while (atomic_load(&ranks[0].comm) == NULL && lr_time() < deadline)
        (void)sched_yield();
    lr_comm *waiting = atomic_load(&ranks[0].comm);
    (void)usleep(100000); /* it is in the barrier now, or will be */
    if (waiting != NULL)
        lr_comm_abort(waiting, "rank 7 failed: disk full");
    atomic_store(&released, true);
    join_ranks(ranks, server);
    CHECK(waiting != NULL);
    CHECK_INT(ranks[0].status, LR_EPEER);
    CHECK_STR(ranks[0].error, "rank 7 failed: disk full");
    CHECK_INT(ranks[1].status, LR_EPEER);
    CHECK_HAS(ranks[1].error, "lost rank 0");
}

static int work_after_abort(lr_comm *c, int rank, lr_tensor *t)
{
    (void)t;
    if (rank == 0)
        lr_comm_abort(c, "over");
    return lr_comm_barrier(c);
}

TEST(after_an_abort_nothing_works)
{
    rank_thread ranks[RANKS];
    lr_store_server *server = start_ranks(ranks, work_after_abort, 60);
    CHECK(server != NULL);
    join_ranks(ranks, server);
    CHECK_INT(ranks[0].status, LR_EPEER);
    CHECK_STR(ranks[0].error, "over");
    CHECK_INT(ranks[1].status, LR_EPEER);
}

/* ---- CUDA without a GPU ---------------------------------------------------------------------------------------------------- */
/* A tensor that claims to be on CUDA: without NCCL no code looks at its bytes. */
static int work_cuda(lr_comm *c, int rank, lr_tensor *t)
{
    char error[256];
    t->device = rank == 0 ? LR_CUDA : LR_CPU;
    const int refused = lr_comm_all_reduce(c, t, LR_SUM);
    (void)snprintf(error, sizeof error, "%s", lr_last_error());
    t->device = LR_CPU;
    const int status = lr_comm_barrier(c);
    return status != LR_OK ? status : lr_fail(refused, "%s", error);
}

TEST(cuda_without_nccl_is_an_error_on_all_ranks)
{
    if (lr_nccl_available() == LR_OK) {
        printf("    skipped: this machine has NCCL and a driver\n");
        return;
    }
    rank_thread ranks[RANKS];
    lr_store_server *server = start_ranks(ranks, work_cuda, 60);
    CHECK(server != NULL);
    join_ranks(ranks, server);
    CHECK_INT(ranks[0].status, LR_EUNSUPPORTED);
    CHECK_INT(ranks[1].status, LR_EPEER);
    CHECK_HAS(ranks[1].error, "rank 0 failed in all_reduce");
}

/* ---- strangers --------------------------------------------------------------------------------------------------------------- */
static atomic_int strangers; /* connections to the ports of ranks that are still to make */
static int held[64], held_count, known[64], known_count;

/* Connect once to every listening port of this process, except the store's. Close at once, or hold the connection and send
 * nothing. */
static void disturb(int store_port, bool hold)
{
    for (int fd = 3; fd < 1024; fd++) {
        struct sockaddr_in own;
        socklen_t size = sizeof own, flag_size = sizeof(int);
        int listens = 0;
        if (getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &listens, &flag_size) != 0 || listens == 0 ||
            getsockname(fd, (struct sockaddr *)&own, &size) != 0 || own.sin_family != AF_INET)
            continue;
        const int port = ntohs(own.sin_port);
        bool seen = port == store_port;
        for (int i = 0; i < known_count; i++)
            seen = seen || known[i] == port;
        if (seen || atomic_load(&strangers) <= 0 || known_count == 64)
            continue;
        known[known_count++] = port;
        const int stranger = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
        if (connect(stranger, (struct sockaddr *)&own, size) == 0)
            (void)atomic_fetch_sub(&strangers, 1);
        if (hold)
            held[held_count++] = stranger;
        else
            (void)close(stranger);
    }
}

static void disturb_first(int store_port, bool hold)
{
    const double deadline = lr_time() + 60;
    known_count = held_count = 0;
    atomic_store(&strangers, 1);
    while (atomic_load(&strangers) > 0 && lr_time() < deadline)
        disturb(store_port, hold);
}

static void close_first(int store_port)
{
    disturb_first(store_port, false);
}

static void hold_first(int store_port)
{
    disturb_first(store_port, true);
}

/* A stranger connects before rank 1 does. Several times, because which rank connects to which depends on their ports. */
TEST(a_stranger_at_a_port_does_not_end_a_job)
{
    for (int run = 0; run < 6; run++) {
        rank_thread ranks[RANKS];
        between = run < 4 ? close_first : hold_first;
        lr_store_server *server = start_ranks(ranks, work_large, 30);
        between = NULL;
        CHECK(server != NULL);
        join_ranks(ranks, server);
        for (int i = 0; i < held_count; i++)
            (void)close(held[i]);
        CHECK_INT(atomic_load(&strangers), 0);
        for (int i = 0; i < RANKS; i++) {
            if (ranks[i].status != LR_OK)
                printf("    run %d, rank %d: %s\n", run, i, ranks[i].error);
            CHECK_INT(ranks[i].status, LR_OK);
        }
    }
}

/* While `ambush` is set, a stranger connects to each port of this process as soon as it listens. */
static atomic_bool ambush;
static atomic_int ambushed[1024], ambushed_count;

static void remember_port(const struct sockaddr_in *a)
{
    const int i = atomic_fetch_add(&ambushed_count, 1);
    if (i < (int)LR_COUNT_OF(ambushed))
        atomic_store(&ambushed[i], ntohs(a->sin_port));
}

/* Replaces the system's function, for Gloo's module too, so that the stranger connects before any rank can. */
__attribute__((visibility("default"))) int listen(int fd, int backlog)
{
    struct sockaddr_in own, strangers_own;
    socklen_t size = sizeof own;
    const int status = (int)syscall(SYS_listen, fd, backlog);
    if (status == 0 && atomic_load(&ambush) && getsockname(fd, (struct sockaddr *)&own, &size) == 0 &&
        own.sin_family == AF_INET) {
        const int stranger = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
        if (connect(stranger, (struct sockaddr *)&own, size) == 0 &&
            getsockname(stranger, (struct sockaddr *)&strangers_own, &size) == 0) {
            remember_port(&own);
            remember_port(&strangers_own);
        }
        (void)close(stranger);
    }
    return status;
}

TEST(strangers_that_do_not_end_are_named_with_the_port)
{
    rank_thread ranks[RANKS];
    atomic_store(&ambush, true);
    lr_store_server *server = start_ranks(ranks, work_large, 30);
    CHECK(server != NULL);
    const int store_port = ranks[0].port;
    join_ranks(ranks, server);
    atomic_store(&ambush, false);
    int named = 0;
    for (int i = 0; i < RANKS; i++) {
        CHECK_INT(ranks[i].status, LR_EPEER);
        CHECK_HAS(ranks[i].error, "tried 5 times");
        const char *text = strstr(ranks[i].error, "]:");
        const int port = text != NULL ? atoi(text + 2) : 0;
        for (int k = 0; k < atomic_load(&ambushed_count) && k < (int)LR_COUNT_OF(ambushed) && port != 0; k++)
            named += port != store_port && port == atomic_load(&ambushed[k]);
    }
    CHECK(named > 0);
}

/* ---- options --------------------------------------------------------------------------------------------------------------- */
TEST(bad_options_are_refused)
{
    lr_comm *c = NULL;
    const lr_comm_options none = {.timeout = 1}, outside = {.timeout = 1, .rank = 2, .world_size = 2},
                          timeless = {.world_size = 1}, storeless = {.timeout = 1, .world_size = 2, .group = "0"};
    CHECK_INT(lr_comm_new(&c, NULL, &none), LR_EINVAL);
    CHECK_INT(lr_comm_new(&c, NULL, &outside), LR_EINVAL);
    CHECK_STR(lr_last_error(), "there is no rank 2 among 2");
    CHECK_INT(lr_comm_new(&c, NULL, &timeless), LR_EINVAL);
    CHECK_INT(lr_comm_new(&c, NULL, &storeless), LR_EINVAL);
    CHECK(c == NULL);
}

TEST_MAIN()
