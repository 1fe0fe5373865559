/* The store's server: whatever members and strangers send, a launcher can still join and gets answers, or the reason why the job
 * failed.
 *
 * The input is a script: a byte says what to do, and its arguments follow. Two connections take turns. */
#define _GNU_SOURCE
#include "dist/store.h"
#include "fuzz.h"
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <poll.h>

enum { WORLD = 3, PATIENCE_MS = 30000 };

typedef struct script {
    const uint8_t *at, *end;
} script;

static lr_store_server *server;
static int generation;
static uint32_t sequence;

static uint8_t next(script *s)
{
    return s->at < s->end ? *s->at++ : 0;
}

static const uint8_t *take(script *s, size_t wanted, size_t *size)
{
    const uint8_t *from = s->at;
    *size = (size_t)(s->end - s->at) < wanted ? (size_t)(s->end - s->at) : wanted;
    s->at += *size;
    return from;
}

static int dial(void)
{
    const struct sockaddr_in a = {.sin_family = AF_INET,
                                  .sin_port = htons((uint16_t)lr_store_server_port(server)),
                                  .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    MUST(fd >= 0);
    if (connect(fd, (const struct sockaddr *)&a, sizeof a) != 0) { /* libFuzzer has a timer that interrupts */
        MUST(errno == EINTR);
        close(fd);
        return dial();
    }
    /* Closing frees the port at once, since the number of ports is limited. */
    MUST(setsockopt(fd, SOL_SOCKET, SO_LINGER, &(struct linger){1, 0}, sizeof(struct linger)) == 0);
    return fd;
}

static void tell(int fd, const void *bytes, size_t size)
{
    (void)!send(fd, bytes, size, MSG_NOSIGNAL); /* the server may have closed the connection */
}

/* Read size bytes, or with size 0 all until the other side ends. false: it closed before. */
static bool hear(int fd, uint8_t *out, size_t size)
{
    uint8_t sink[4096];
    for (size_t n = 0; size == 0 || n < size;) {
        const int ready = poll(&(struct pollfd){.fd = fd, .events = POLLIN}, 1, PATIENCE_MS);
        MUST(ready == 1 || (ready < 0 && errno == EINTR));
        const ssize_t got = size == 0 ? recv(fd, sink, sizeof sink, 0) : recv(fd, out + n, size - n, 0);
        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0)
            return size == 0;
        n += (size_t)got;
    }
    return true;
}

/* The handshake. Bits of `how` make it wrong. */
static void greet(int fd, uint8_t how)
{
    uint8_t greeting[LR_STORE_GREETING], hello[LR_STORE_HELLO];
    if (!hear(fd, greeting, sizeof greeting))
        return;
    lr_store_hello h = {
        .rank = how & 3, .world_size = WORLD + ((how & 12) == 12), .generation = generation + ((how & 48) == 48)};
    snprintf(h.version, sizeof h.version, "%s", how == 0xFF ? "0.0" : lr_version());
    lr_store_hello_pack(hello, &h, greeting, how == 0xFE ? "wrong" : "secret");
    tell(fd, hello, sizeof hello);
}

static void ask(int fd, uint8_t op, script *s)
{
    static const char keys[] = "abcd";
    size_t size;
    const uint8_t details = next(s);
    const uint8_t *value = take(s, op == LR_STORE_SET || op == LR_STORE_FAIL ? details >> 2 : 0, &size);
    const lr_store_request r = {.op = op,
                                .sequence = ++sequence,
                                .key_size = op == LR_STORE_FAIL ? 0 : 1,
                                .value_size = (uint32_t)size,
                                .number =
                                    op == LR_STORE_GET ? details >> 6 : (int64_t)((uint64_t)details << (details >> 2))};
    uint8_t frame[LR_STORE_REQUEST + 1];
    lr_store_request_pack(frame, &r);
    frame[LR_STORE_REQUEST] = (uint8_t)keys[details & 3];
    tell(fd, frame, LR_STORE_REQUEST + r.key_size);
    tell(fd, value, size);
}

static void play(script *s)
{
    int fds[2] = {dial(), dial()};
    int turn = 0;
    size_t size;
    while (s->at < s->end) {
        const uint8_t what = next(s);
        switch (what % 8) {
        case 1: /* LR_STORE_SET and so on */
        case 2:
        case 3:
        case 4:
            ask(fds[turn], what % 8, s);
            break;
        case 5: { /* bytes as they are */
            const uint8_t *bytes = take(s, what >> 3, &size);
            tell(fds[turn], bytes, size);
            break;
        }
        case 6:
            close(fds[turn]);
            fds[turn] = dial();
            break;
        case 7:
            turn = !turn;
            break;
        default:
            greet(fds[turn], next(s));
        }
    }
    for (int i = 0; i < 2; i++) {
        shutdown(fds[i], SHUT_WR);
        hear(fds[i], NULL, 0);
        close(fds[i]);
    }
}

static void check_alive(void)
{
    const lr_store_member launcher = {
        .secret = "secret", .rank = LR_STORE_OBSERVER, .world_size = WORLD, .generation = generation};
    lr_store *s = NULL;
    const int status = lr_store_connect(&s, "127.0.0.1", lr_store_server_port(server), &launcher, 30);
    MUST(status == LR_OK || status == LR_EPEER);
    if (status == LR_OK) {
        char *value = NULL;
        int64_t size = 0;
        MUST(lr_store_set(s, "launcher", "here", 4) == LR_OK);
        MUST(lr_store_get(s, "launcher", 0, &value, &size) == LR_OK && size == 4 && strcmp(value, "here") == 0);
        lr_free(value);
        lr_store_close(s);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (server == NULL)
        MUST(lr_store_crypto() == LR_OK && lr_store_serve(&server, "127.0.0.1", 0, "secret", WORLD) == LR_OK);
    sequence = 0;
    play(&(script){data, data + size});
    check_alive();
    MUST(lr_store_server_reset(server, ++generation) == LR_OK);
    return 0;
}
