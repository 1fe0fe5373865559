/* test_store_abuse.c: what strangers and broken members may do to a store while a job goes on: noise, forged and replayed
 * hellos, connections that are silent, slow, half closed or many, malformed frames, readers that do not read; and what a false
 * server may do to a client. Also how many members are served at once. Noise is drawn from fixed seeds. */
#define _GNU_SOURCE
#include "dist_store.h"
#include <errno.h>
#include <sys/resource.h>
#include <sys/wait.h>

/* The next 32 random bits of a stream. */
static uint32_t draw(uint32_t stream)
{
    static uint64_t position;
    uint32_t out[4];
    lr_random(20240229, stream, 0, position++, out);
    return out[0];
}

static void fill(uint8_t *bytes, size_t size, uint32_t stream)
{
    for (size_t i = 0; i < size; i++)
        bytes[i] = (uint8_t)draw(stream);
}

/* Send as much as the other end takes; it may close at any time. */
static void raw_send(int fd, const void *bytes, size_t size)
{
    for (size_t sent = 0; sent < size;) {
        const ssize_t n = send(fd, (const char *)bytes + sent, size - sent, MSG_NOSIGNAL);
        if (n <= 0)
            return;
        sent += (size_t)n;
    }
}

/* Does the other end close the connection within some seconds? What it still sends is read and discarded. */
static bool raw_closed(int fd, int seconds)
{
    const double deadline = lr_time() + seconds;
    while (lr_time() < deadline) {
        char bytes[4096];
        struct pollfd p = {.fd = fd, .events = POLLIN};
        if (poll(&p, 1, 100) == 1 && recv(fd, bytes, sizeof bytes, 0) <= 0)
            return true;
    }
    return false;
}

/* A member whose bytes the test sends itself. */
static int raw_member(int port, int rank, int world_size)
{
    uint8_t greeting[LR_STORE_GREETING], hello[LR_STORE_HELLO], verdict[LR_STORE_VERDICT];
    const lr_store_hello h = {.version = LR_VERSION, .rank = rank, .world_size = world_size};
    const int fd = raw_connect(port);
    CHECK_INT(raw_read(fd, greeting, sizeof greeting), sizeof greeting);
    lr_store_hello_pack(hello, &h, greeting, "");
    raw_send(fd, hello, sizeof hello);
    CHECK_INT(raw_read(fd, verdict, sizeof verdict), sizeof verdict);
    int32_t status;
    uint32_t size;
    lr_store_verdict_unpack(verdict, &status, &size);
    CHECK_INT(status, LR_OK);
    return fd;
}

/* Raises the limit of open files for both ends of `connections`. If the system does not allow that, the test says so and is
 * skipped. */
static bool files_for(int connections)
{
    struct rlimit limit;
    const rlim_t need = (rlim_t)(2 * connections + 512);
    CHECK_INT(getrlimit(RLIMIT_NOFILE, &limit), 0);
    if (limit.rlim_cur < need && limit.rlim_max >= need) {
        limit.rlim_cur = need;
        CHECK_INT(setrlimit(RLIMIT_NOFILE, &limit), 0);
    }
    if (limit.rlim_cur >= need)
        return true;
    printf("    SKIPPED: %llu open files are allowed, %llu are needed\n", (unsigned long long)limit.rlim_cur,
           (unsigned long long)need);
    return false;
}

/* ---- before joining ---------------------------------------------------------------------------------------------- */
TEST(noise_is_shut_out)
{
    static const char *const speeches[] = {"GET / HTTP/1.1\r\nHost: example.org\r\n\r\n",
                                           "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
                                           "SSH-2.0-OpenSSH_9.2\r\n",
                                           "\n",
                                           "lrstore\n",
                                           "*1\r\n$4\r\nPING\r\n",
                                           "\xff\xff\xff\xff\xff\xff\xff\x7f",
                                           ""};
    lr_store_server *server = serve(NULL, 1);
    lr_store *a = join(server, NULL, 0, 1);
    CHECK_INT(lr_store_set(a, "k", "v", 1), LR_OK);
    for (size_t i = 0; i < LR_COUNT_OF(speeches); i++) {
        uint8_t padded[4 * LR_STORE_HELLO] = {0};
        memcpy(padded, speeches[i], strlen(speeches[i]));
        for (int whole = 0; whole < 2; whole++) { /* as it is, and made long enough for a hello */
            const int fd = raw_connect(lr_store_server_port(server));
            raw_send(fd, padded, whole ? sizeof padded : strlen(speeches[i]));
            shutdown(fd, SHUT_WR);
            CHECK(raw_closed(fd, 60));
            close(fd);
        }
    }
    for (int i = 0; i < 300; i++) { /* of all lengths, some with the right beginning, some closed at once */
        uint8_t bytes[2 * LR_STORE_HELLO];
        const size_t size = draw(1) % sizeof bytes;
        fill(bytes, sizeof bytes, 2);
        if (i % 3 == 0)
            memcpy(bytes, "lrstore\n", 8);
        const int fd = raw_connect(lr_store_server_port(server));
        raw_send(fd, bytes, size);
        if (i % 2 == 0) {
            shutdown(fd, SHUT_WR);
            CHECK(raw_closed(fd, 60));
        }
        close(fd);
    }
    check_value(a, "k", "v");
    lr_store_close(a);
    lr_store_server_stop(server);
}

/* One flipped bit anywhere in the hello or in the greeting that it answers makes the proof invalid. */
TEST(a_hello_that_was_tampered_with_proves_nothing)
{
    lr_store_server *server = serve("secret", 4);
    lr_store *a = join(server, "secret", 0, 4);
    const lr_store_hello h = {.version = LR_VERSION, .rank = 1, .world_size = 4};
    for (size_t bit = 0; bit < 8 * LR_STORE_HELLO; bit++) {
        uint8_t greeting[LR_STORE_GREETING], hello[LR_STORE_HELLO], verdict[LR_STORE_VERDICT];
        static const uint8_t no_proof[LR_STORE_PROOF];
        const int fd = raw_connect(lr_store_server_port(server));
        CHECK_INT(raw_read(fd, greeting, sizeof greeting), sizeof greeting);
        lr_store_hello_pack(hello, &h, greeting, "secret");
        hello[bit / 8] ^= (uint8_t)(1 << bit % 8);
        raw_send(fd, hello, sizeof hello);
        CHECK_INT(raw_read(fd, verdict, sizeof verdict), sizeof verdict);
        int32_t status;
        uint32_t size;
        lr_store_verdict_unpack(verdict, &status, &size);
        CHECK_INT(status, LR_EREFUSED);
        CHECK(memcmp(verdict + sizeof verdict - sizeof no_proof, no_proof, sizeof no_proof) == 0);
        close(fd);
    }
    CHECK_INT(lr_store_set(a, "k", "v", 1), LR_OK); /* the members are unharmed */
    lr_store_close(a);
    lr_store_server_stop(server);
}

TEST(a_recorded_hello_is_worth_nothing)
{
    lr_store_server *server = serve("secret", 2);
    uint8_t greeting[2][LR_STORE_GREETING], hello[LR_STORE_HELLO], verdict[LR_STORE_VERDICT];
    const lr_store_hello h = {.version = LR_VERSION, .rank = 1, .world_size = 2};
    for (int i = 0; i < 2; i++) {
        const int fd = raw_connect(lr_store_server_port(server));
        CHECK_INT(raw_read(fd, greeting[i], sizeof greeting[i]), sizeof greeting[i]);
        if (i == 0)
            lr_store_hello_pack(hello, &h, greeting[i], "secret");
        raw_send(fd, hello, sizeof hello);
        CHECK_INT(raw_read(fd, verdict, sizeof verdict), sizeof verdict);
        int32_t status;
        uint32_t size;
        lr_store_verdict_unpack(verdict, &status, &size);
        CHECK_INT(status, i == 0 ? LR_OK : LR_EREFUSED);
        close(fd);
    }
    CHECK(memcmp(greeting[0], greeting[1], sizeof greeting[0]) != 0);
    lr_store_server_stop(server);
}

/* Silent, slow and half closed connections are closed when their time is over. Until then they hold up nobody. */
TEST(a_handshake_that_is_not_finished_is_ended)
{
    enum { EACH = 20 };
    lr_store_server *server = serve(NULL, 2);
    lr_store *a = join(server, NULL, 0, 2);
    int silent[EACH], slow[EACH], stuck[EACH];
    for (int i = 0; i < EACH; i++) {
        silent[i] = raw_connect(lr_store_server_port(server));
        slow[i] = raw_connect(lr_store_server_port(server));
        stuck[i] = raw_connect(lr_store_server_port(server));
        raw_send(stuck[i], "lrstore\n", 8);
        lr_store_hello nobody = {.rank = 1}; /* it is refused, and then neither reads nor closes */
        uint8_t zeros[LR_STORE_GREETING] = {0}, hello[LR_STORE_HELLO];
        lr_store_hello_pack(hello, &nobody, zeros, "x");
        if (i % 2)
            raw_send(stuck[i], hello, sizeof hello);
    }
    const double start = lr_time();
    int rounds = 0;
    for (; lr_time() < start + LR_STORE_HANDSHAKE / 2.0; rounds++) {
        for (int i = 0; i < EACH; i++)
            raw_send(slow[i], "l", 1);
        int64_t sum;
        CHECK_INT(lr_store_add(a, "n", 1, &sum), LR_OK);
        lr_store_close(join(server, NULL, 1, 2));
        sleep_ms(100);
    }
    CHECK(rounds > 1);
    for (int i = 0; i < EACH; i++) {
        CHECK(raw_closed(silent[i], 120));
        CHECK(raw_closed(slow[i], 120));
        CHECK(raw_closed(stuck[i], 120));
        close(silent[i]);
        close(slow[i]);
        close(stuck[i]);
    }
    CHECK(lr_time() - start > LR_STORE_HANDSHAKE - 2); /* they did have that time */
    lr_store_close(a);
    lr_store_server_stop(server);
}

/* More strangers than the server keeps: the oldest are dropped, memory stays bounded, members can still join. */
TEST(a_flood_of_strangers_drops_the_oldest)
{
    enum { FLOOD = 1500, KEPT = 1024 };
    if (!files_for(FLOOD))
        return;
    lr_store_server *server = serve(NULL, 2);
    lr_store *a = join(server, NULL, 0, 2);
    lr_memory memory;
    CHECK_INT(lr_memory_stats(LR_CPU, &memory), LR_OK);
    const int64_t before = memory.host_objects;
    static int fds[FLOOD];
    uint8_t greeting[LR_STORE_GREETING];
    for (int i = 0; i < FLOOD; i++) {
        fds[i] = raw_connect(lr_store_server_port(server));
        CHECK_INT(raw_read(fds[i], greeting, sizeof greeting), sizeof greeting);
    }
    CHECK_INT(lr_memory_stats(LR_CPU, &memory), LR_OK);
    CHECK(memory.host_objects - before <= KEPT + 64); /* more are freed only at the end of a round */
    lr_store *b = join(server, NULL, 1, 2);
    CHECK_INT(lr_store_set(b, "k", "v", 1), LR_OK);
    check_value(a, "k", "v");
    CHECK(raw_closed(fds[0], 60));
    CHECK(raw_closed(fds[FLOOD - KEPT - 1], 60));
    for (int i = 0; i < FLOOD; i++)
        close(fds[i]);
    lr_store_close(a);
    lr_store_close(b);
    lr_store_server_stop(server);
}

/* A server in a process that may open few files. 0: all went well; otherwise the step that failed. */
static int with_few_files(void)
{
    const struct rlimit few = {48, 48};
    lr_store_server *server = NULL;
    lr_store *members[64] = {NULL};
    if (setrlimit(RLIMIT_NOFILE, &few) != 0 || lr_store_serve(&server, "127.0.0.1", 0, NULL, 64) != LR_OK)
        return 1;
    lr_store_member who = {.world_size = 64};
    int joined = 0;
    for (int status = LR_OK; joined < 64; joined++) { /* both ends are in this process: members use up all files */
        who.rank = joined;
        status = lr_store_connect(&members[joined], "127.0.0.1", lr_store_server_port(server), &who, 5);
        if (status == LR_ETIMEOUT)
            break;
        if (status != LR_OK)
            return 2;
    }
    if (joined < 10 || joined > 24)
        return 3;
    for (int i = 0; i < joined; i++)
        if (lr_store_set(members[i], "k", "v", 1) != LR_OK)
            return 4;
    lr_store_close(members[0]);
    lr_store_close(members[1]);
    who.rank = 1;
    if (lr_store_connect(&members[1], "127.0.0.1", lr_store_server_port(server), &who, 60) != LR_OK)
        return 5;
    for (int i = 1; i < joined; i++)
        lr_store_close(members[i]);
    lr_store_server_stop(server);
    return 0;
}

TEST(running_out_of_files_does_not_harm_members)
{
    const pid_t child = fork();
    if (child == 0)
        _exit(with_few_files());
    int status = -1;
    CHECK(child > 0 && waitpid(child, &status, 0) == child);
    CHECK_INT(status, 0);
}

/* ---- after joining ----------------------------------------------------------------------------------------------- */
TEST(frames_beyond_the_limits_end_the_connection)
{
    static const lr_store_request wrong[] = {{LR_STORE_SET, 1, 1, LR_STORE_VALUE + 1, 0},
                                             {LR_STORE_SET, 1, LR_STORE_KEY + 1, 1, 0},
                                             {LR_STORE_SET, 1, 0, 1, 0},
                                             {LR_STORE_SET, 1, UINT32_MAX, UINT32_MAX, 0},
                                             {LR_STORE_GET, 1, 1, 1, 0},
                                             {LR_STORE_GET, 1, 1, 0, -1},
                                             {LR_STORE_GET, 1, 0, 0, 0},
                                             {LR_STORE_ADD, 1, 1, 1, 0},
                                             {LR_STORE_FAIL, 1, 1, 1, 0},
                                             {LR_STORE_FAIL, 1, 0, 0, 0},
                                             {LR_STORE_FAIL, 1, 0, LR_STORE_TEXT + 1, 0},
                                             {0, 1, 1, 0, 0},
                                             {5, 1, 1, 0, 0},
                                             {UINT32_MAX, 1, 1, 0, 0}};
    lr_store_server *server = serve(NULL, 2);
    lr_store *a = join(server, NULL, 0, 2);
    for (size_t i = 0; i < LR_COUNT_OF(wrong); i++) {
        uint8_t head[LR_STORE_REQUEST];
        const int fd = raw_member(lr_store_server_port(server), 1, 2); /* its rank is free again each time */
        lr_store_request_pack(head, &wrong[i]);
        raw_send(fd, head, sizeof head);
        CHECK(raw_closed(fd, 60));
        close(fd);
    }
    CHECK_INT(lr_store_set(a, "k", "v", 1), LR_OK);
    lr_store_close(a);
    lr_store_server_stop(server);
}

/* Streams of requests that are mostly well-formed, with some noise, cut off anywhere; their replies are read or not. */
TEST(members_that_send_noise)
{
    lr_store_server *server = serve(NULL, 2);
    const int port = lr_store_server_port(server);
    lr_store *a = join(server, NULL, 0, 2);
    for (int round = 0; round < 150; round++) {
        static uint8_t stream[64 << 10];
        size_t size = 0;
        for (uint32_t n = draw(4) % 40; n > 0; n--) {
            lr_store_request r = {.op = 1 + draw(4) % 3, .sequence = draw(4), .key_size = 1 + draw(4) % 3};
            r.value_size = r.op == LR_STORE_SET ? draw(4) % 1000 : 0;
            r.number = r.op == LR_STORE_GET ? draw(4) % 3 : draw(4);
            lr_store_request_pack(stream + size, &r);
            size += LR_STORE_REQUEST;
            for (uint32_t i = 0; i < r.key_size + r.value_size; i++)
                stream[size++] = (uint8_t)('0' + draw(4) % 4);
        }
        for (uint32_t n = round % 3 == 0 ? 1 + draw(5) % 20 : 0; n > 0 && size > 0; n--)
            stream[draw(5) % size] = (uint8_t)draw(5);
        const int fd = raw_member(port, 1, 2);
        for (size_t sent = 0; sent < size;) { /* in pieces */
            const size_t piece = lr_min64((int64_t)(size - sent), 1 + draw(6) % 5000);
            raw_send(fd, stream + sent, piece);
            sent += piece;
        }
        shutdown(fd, round % 2 ? SHUT_RDWR : SHUT_WR);
        if (round % 2 == 0)
            CHECK(raw_closed(fd, 60));
        close(fd);
        int64_t sum;
        CHECK_INT(lr_store_add(a, "well", 1, &sum), LR_OK);
        CHECK_INT(sum, round + 1);
    }
    lr_store_close(a);
    lr_store_server_stop(server);
}

/* Members that ask for much and read nothing, or stop within a frame, cost the others nothing. */
TEST(readers_that_do_not_read)
{
    enum { LAZY = 16 };
    lr_store_server *server = serve(NULL, LAZY + 1);
    lr_store *a = join(server, NULL, LAZY, LAZY + 1);
    static char big[LR_STORE_VALUE];
    CHECK_INT(lr_store_set(a, "big", big, sizeof big), LR_OK);
    lr_memory before, after;
    CHECK_INT(lr_memory_stats(LR_CPU, &before), LR_OK);
    int fds[LAZY];
    for (int i = 0; i < LAZY; i++) {
        fds[i] = raw_member(lr_store_server_port(server), i, LAZY + 1);
        uint8_t frame[LR_STORE_REQUEST + 3];
        const bool half = i % 4 == 0;
        lr_store_request_pack(frame, &(lr_store_request){.op = half ? LR_STORE_SET : LR_STORE_GET,
                                                         .key_size = 3,
                                                         .value_size = half ? LR_STORE_VALUE : 0});
        memcpy(frame + LR_STORE_REQUEST, "big", 3);
        for (int k = 0; k < (half ? 1 : 50); k++) /* the server handles one at a time */
            raw_send(fds[i], frame, sizeof frame);
    }
    for (int i = 0; i < 50; i++) {
        int64_t sum;
        CHECK_INT(lr_store_add(a, "n", 1, &sum), LR_OK);
    }
    CHECK_INT(lr_memory_stats(LR_CPU, &after), LR_OK);
    CHECK(after.host_objects - before.host_objects <= 3 * LAZY + 16); /* the value exists once */
    for (int i = 0; i < LAZY; i++)
        close(fds[i]);
    check_value(a, "n", "50");
    lr_store_close(a);
    lr_store_server_stop(server);
}

/* A rank may come back after it closed its connection in the middle of a reply, which the server cannot see by writing alone. */
TEST(a_rank_that_closed_during_a_reply_can_come_back)
{
    lr_store_server *server = serve(NULL, 2);
    lr_store *a = join(server, NULL, 0, 2);
    static char big[LR_STORE_VALUE];
    CHECK_INT(lr_store_set(a, "big", big, sizeof big), LR_OK);
    const int fd = raw_member(lr_store_server_port(server), 1, 2);
    uint8_t frame[LR_STORE_REQUEST + 3];
    lr_store_request_pack(frame, &(lr_store_request){.op = LR_STORE_GET, .key_size = 3});
    memcpy(frame + LR_STORE_REQUEST, "big", 3);
    raw_send(fd, frame, sizeof frame);
    CHECK_INT(raw_read(fd, big, 1), 1);
    shutdown(fd, SHUT_WR);
    lr_store *b = join(server, NULL, 1, 2);
    CHECK_INT(lr_store_set(b, "k", "v", 1), LR_OK);
    close(fd);
    lr_store_close(a);
    lr_store_close(b);
    lr_store_server_stop(server);
}

/* ---- many -------------------------------------------------------------------------------------------------------- */
typedef struct rank_thread {
    pthread_t thread;
    int port, rank, world_size, status;
    char error[256];
} rank_thread;

static int rank_life(const rank_thread *r)
{
    lr_store *s = NULL;
    char key[32], text[32], *value = NULL;
    int64_t n = 0;
    const lr_store_member who = {.secret = "s", .rank = r->rank, .world_size = r->world_size};
    int status = lr_store_connect(&s, "127.0.0.1", r->port, &who, 300);
    if (status != LR_OK)
        return status;
    snprintf(key, sizeof key, "rank/%d", r->rank);
    status = lr_store_set(s, key, key, (int64_t)strlen(key));
    if (status == LR_OK)
        status = lr_store_add(s, "arrived", 1, &n);
    if (status == LR_OK)
        status = lr_store_get(s, "go", 300, &value, &n); /* all of them wait here at once */
    if (status == LR_OK) {
        lr_free(value);
        snprintf(text, sizeof text, "rank/%d", (r->rank + 1) % r->world_size);
        status = lr_store_get(s, text, 0, &value, &n);
    }
    if (status == LR_OK) {
        if (strcmp(value, text) != 0)
            status = lr_fail(LR_EINTERNAL, "'%s' instead of '%s'", value, text);
        lr_free(value);
    }
    lr_store_close(s);
    return status;
}

static void *rank_run(void *context)
{
    rank_thread *r = context;
    r->status = rank_life(r);
    snprintf(r->error, sizeof r->error, "%s", lr_last_error());
    return NULL;
}

TEST(a_thousand_members_at_once)
{
    enum { WORLD = 1024 };
    if (!files_for(WORLD + 1024))
        return;
    static rank_thread ranks[WORLD];
    lr_store_server *server = serve("s", WORLD);
    lr_store *launcher = join(server, "s", LR_STORE_OBSERVER, WORLD);
    pthread_attr_t small;
    pthread_attr_init(&small);
    pthread_attr_setstacksize(&small, 256 << 10);
    for (int i = 0; i < WORLD; i++) {
        ranks[i] = (rank_thread){.port = lr_store_server_port(server), .rank = i, .world_size = WORLD};
        CHECK_INT(pthread_create(&ranks[i].thread, &small, rank_run, &ranks[i]), 0);
    }
    pthread_attr_destroy(&small);
    int64_t arrived = 0;
    const double deadline = lr_time() + 300;
    while (arrived < WORLD && lr_time() < deadline) {
        CHECK_INT(lr_store_add(launcher, "arrived", 0, &arrived), LR_OK);
        sleep_ms(10);
    }
    CHECK_INT(arrived, WORLD);
    CHECK_INT(lr_store_set(launcher, "go", "", 0), LR_OK);
    for (int i = 0; i < WORLD; i++)
        pthread_join(ranks[i].thread, NULL);
    for (int i = 0; i < WORLD; i++)
        if (ranks[i].status != LR_OK)
            LR_TEST_FAIL("rank %d: %s: %s", i, lr_status_name(ranks[i].status), ranks[i].error);
    lr_store_close(launcher);
    lr_store_server_stop(server);
}

TEST_MAIN()
