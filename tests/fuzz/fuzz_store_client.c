/* The store's client: whatever a server says, a call ends, and what it returns is complete.
 *
 * The first byte of the input says how far the server behaves correctly. The rest is what it sends then, before it closes the
 * connection. */
#define _GNU_SOURCE
#include "dist/store.h"
#include "fuzz.h"
#include <arpa/inet.h>
#include <netinet/in.h>

enum { SAY_REPLIES, SAY_BYTES, SAY_INSTEAD, SAY_FOR_A_VERDICT, SAY_IN_A_VERDICT, WAYS };
enum { CALLS = 8, MOST = 4096 };

static int listener, port;
/* What the server says to the next client: the input. A client that has given up may still be in the queue. */
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static uint8_t input[MOST];
static size_t input_size;

static void tell(int fd, const void *bytes, size_t size)
{
    (void)!send(fd, bytes, size, MSG_NOSIGNAL);
}

/* Replies in the order of the calls, unless a bit says otherwise. Each is: flags, status, size, and that many bytes. */
static void tell_replies(int fd, const uint8_t *at, const uint8_t *end)
{
    for (uint32_t sequence = 1; end - at >= 3; sequence++) {
        const uint8_t flags = at[0];
        lr_store_reply r = {.sequence = flags & 1 ? sequence - 1 : sequence,
                            .status = flags & 2   ? -(int32_t)at[1]
                                      : flags & 4 ? (int32_t)at[1] << 23
                                                  : LR_OK,
                            .number = at[1],
                            .size = flags & 8 ? (uint32_t)at[2] << 24 : at[2]};
        sequence -= flags & 1;
        uint8_t frame[LR_STORE_REPLY];
        lr_store_reply_pack(frame, &r);
        tell(fd, frame, sizeof frame);
        at += 3;
        const size_t n = r.size < (size_t)(end - at) ? r.size : (size_t)(end - at);
        tell(fd, at, n);
        at += n;
    }
}

static void speak(int fd)
{
    uint8_t greeting[LR_STORE_GREETING], hello[LR_STORE_HELLO], verdict[LR_STORE_VERDICT];
    uint8_t words[MOST];
    pthread_mutex_lock(&mutex);
    const size_t size = input_size - 1;
    memcpy(words, input, input_size);
    pthread_mutex_unlock(&mutex);
    const int way = words[0] % WAYS;
    const uint8_t *rest = words + 1;
    if (way == SAY_INSTEAD) {
        tell(fd, rest, size);
        return;
    }
    lr_store_greeting_pack(greeting);
    tell(fd, greeting, sizeof greeting);
    if (recv(fd, hello, sizeof hello, MSG_WAITALL) != sizeof hello)
        return;
    if (way == SAY_FOR_A_VERDICT) {
        tell(fd, rest, size);
        return;
    }
    const bool own = way == SAY_IN_A_VERDICT && size > 0;
    const char *text = own ? (const char *)rest + 1 : "";
    lr_store_verdict_pack(verdict, own ? -rest[0] : LR_OK, text, own ? size - 1 : 0, greeting, hello, "secret");
    tell(fd, verdict, sizeof verdict);
    if (way == SAY_REPLIES)
        tell_replies(fd, rest, rest + size);
    else
        tell(fd, own ? rest + 1 : rest, own ? size - 1 : size);
}

static void *serve(void *unused)
{
    for (;;) {
        const int fd = accept(listener, NULL, NULL);
        MUST(fd >= 0);
        speak(fd);
        shutdown(fd, SHUT_WR);
        char sink[256];
        while (recv(fd, sink, sizeof sink, 0) > 0)
            ;
        MUST(setsockopt(fd, SOL_SOCKET, SO_LINGER, &(struct linger){1, 0}, sizeof(struct linger)) == 0);
        close(fd);
    }
    return unused;
}

static void start(void)
{
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof a;
    listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    MUST(lr_store_crypto() == LR_OK && bind(listener, (struct sockaddr *)&a, size) == 0 && listen(listener, 16) == 0 &&
         getsockname(listener, (struct sockaddr *)&a, &size) == 0);
    port = ntohs(a.sin_port);
    pthread_t thread;
    MUST(lr_thread_start(&thread, serve, NULL) == LR_OK); /* no signal interrupts it */
}

static int one_call(lr_store *s, int i)
{
    char *value = NULL;
    int64_t n = -1;
    int status;
    switch (i % 4) {
    case 0:
        status = lr_store_get(s, "key", 1, &value, &n);
        MUST((status == LR_OK) == (value != NULL));
        MUST(value == NULL || (n >= 0 && value[n] == 0));
        lr_free(value);
        return status;
    case 1:
        return lr_store_add(s, "sum", 1, &n);
    case 2:
        return lr_store_set(s, "key", "value", 5);
    default:
        return lr_store_fail(s, "why");
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size < 1 || size > MOST)
        return -1;
    pthread_mutex_lock(&mutex);
    memcpy(input, data, size);
    input_size = size;
    pthread_mutex_unlock(&mutex);
    if (listener == 0)
        start();
    const int64_t before = fuzz_objects();
    const lr_store_member who = {.secret = "secret", .rank = 0, .world_size = 2};
    lr_store *s = NULL;
    if (lr_store_connect(&s, "127.0.0.1", port, &who, 0.01) == LR_OK) {
        int status = LR_OK;
        for (int i = 0; i < CALLS; i++)
            status = one_call(s, i);
        MUST(status < 0 || status == LR_OK);
        lr_store_close(s);
    } else {
        MUST(s == NULL);
    }
    MUST(fuzz_objects() == before);
    return 0;
}
