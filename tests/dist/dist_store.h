/* dist_store.h: what the tests of the store share: servers and members, calls in threads of their own, and a client that can
 * send any bytes. A failed check ends a test by longjmp, so only the main thread checks; threads keep their results. */
#ifndef DIST_STORE_H
#define DIST_STORE_H

#include "dist/store.h"
#include "lr_test.h"
#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <signal.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static inline void sleep_ms(int ms)
{
    nanosleep(&(struct timespec){.tv_sec = ms / 1000, .tv_nsec = ms % 1000 * 1000000L}, NULL);
}

static inline lr_store_server *serve(const char *secret, int world_size)
{
    lr_store_server *server = NULL;
    CHECK_INT(lr_store_serve(&server, "127.0.0.1", 0, secret, world_size), LR_OK);
    CHECK(lr_store_server_port(server) > 0);
    return server;
}

static inline lr_store *join(const lr_store_server *server, const char *secret, int rank, int world_size)
{
    lr_store *s = NULL;
    const lr_store_member who = {.secret = secret, .rank = rank, .world_size = world_size};
    CHECK_INT(lr_store_connect(&s, "127.0.0.1", lr_store_server_port(server), &who, 120), LR_OK);
    return s;
}

static inline void check_value(lr_store *s, const char *key, const char *expected)
{
    char *value = NULL;
    int64_t size = -1;
    CHECK_INT(lr_store_get(s, key, 0, &value, &size), LR_OK);
    CHECK_STR(value, expected);
    CHECK_INT(size, (int64_t)strlen(expected));
    lr_free(value);
}

/* Have a signal raise the interrupt flag in this thread, as Ctrl-C does. */
static inline void interrupt_handler(int signal)
{
    (void)signal;
    lr_interrupt_raise();
}

static inline void interrupt_after(int ms)
{
    signal(SIGALRM, interrupt_handler);
    lr_interrupt_enable(1);
    setitimer(ITIMER_REAL, &(struct itimerval){.it_value = {.tv_usec = ms * 1000}}, NULL);
}

static inline void interrupt_off(void)
{
    lr_interrupt_enable(0);
}

/* ---- calls in threads -------------------------------------------------------------------------------------------- */
typedef struct getter {
    lr_store *store;
    const char *key;
    double timeout;
    pthread_t thread;
    int status;
    char *value;
    int64_t size;
    char error[512];
} getter;

static inline void *get_run(void *context)
{
    getter *g = context;
    g->status = lr_store_get(g->store, g->key, g->timeout, &g->value, &g->size);
    snprintf(g->error, sizeof g->error, "%s", lr_last_error());
    return NULL;
}

static inline void get_start(getter *g)
{
    CHECK_INT(lr_thread_start(&g->thread, get_run, g), LR_OK);
}

static inline void get_end(getter *g)
{
    pthread_join(g->thread, NULL);
}

typedef struct joiner {
    int port;
    lr_store_member who;
    pthread_t thread;
    int status;
    lr_store *store;
} joiner;

static inline void *join_run(void *context)
{
    joiner *j = context;
    j->status = lr_store_connect(&j->store, "127.0.0.1", j->port, &j->who, 120);
    return NULL;
}

static inline void join_start(joiner *j)
{
    CHECK_INT(lr_thread_start(&j->thread, join_run, j), LR_OK);
}

static inline void join_end(joiner *j)
{
    pthread_join(j->thread, NULL);
}

/* ---- a client of bytes ------------------------------------------------------------------------------------------- */
static inline int raw_connect(int port)
{
    const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    const struct sockaddr_in a = {
        .sin_family = AF_INET, .sin_port = htons((uint16_t)port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    CHECK(fd >= 0);
    CHECK_INT(connect(fd, (const struct sockaddr *)&a, sizeof a), 0);
    return fd;
}

/* Reads until `size` bytes have come, the end or an error: the number of bytes. */
static inline size_t raw_read(int fd, void *out, size_t size)
{
    size_t n = 0;
    for (ssize_t got; n < size && (got = recv(fd, (char *)out + n, size - n, 0)) > 0;)
        n += (size_t)got;
    return n;
}

/* Handshake with the given hello. Returns the verdict's status and text, after checking its proof. */
static inline int raw_join(int port, const char *secret, const lr_store_hello *h, char *text)
{
    uint8_t greeting[LR_STORE_GREETING], hello[LR_STORE_HELLO], verdict[LR_STORE_VERDICT];
    const int fd = raw_connect(port);
    CHECK_INT(raw_read(fd, greeting, sizeof greeting), sizeof greeting);
    CHECK(lr_store_greeting_valid(greeting));
    lr_store_hello_pack(hello, h, greeting, secret);
    CHECK_INT(send(fd, hello, sizeof hello, MSG_NOSIGNAL), sizeof hello);
    CHECK_INT(raw_read(fd, verdict, sizeof verdict), sizeof verdict);
    int32_t status;
    uint32_t size;
    lr_store_verdict_unpack(verdict, &status, &size);
    CHECK(size <= LR_STORE_TEXT);
    CHECK_INT(raw_read(fd, text, size), size);
    text[size] = 0;
    CHECK(lr_store_verdict_proven(verdict, text, greeting, hello, secret));
    close(fd);
    return status;
}

#endif
