/* store_server.c: serving a store: sockets, time and the thread. What clients say is for store_members.c, sending is in
 * store_connections.c.
 *
 * One thread waits in epoll for all clients. Nothing in it blocks, so no client can hold up another. A client is read from only
 * while nothing is being sent to it, a bounded amount in each turn, and its frame grows as it arrives. So a client that is slow,
 * silent or broken costs the others nothing, and the server no more memory than the client has really sent.
 *
 * Few clients may be waiting to join: beyond a limit, or if the process has no more files, the one that has been here longest is
 * dropped. Each has LR_STORE_HANDSHAKE seconds.
 *
 * Invariants
 *   - Only the thread touches clients, keys and members; other threads post an order and wait until it is carried out.
 *   - A client that is dropped is freed at the end of the round, since events and loops may still point to it. */
#define _GNU_SOURCE
#include "dist/store_server.h"
#include "io/file.h"
#include <errno.h>
#include <math.h>
#include <netdb.h>
#include <netinet/in.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/resource.h>
#include <unistd.h>

enum {
    MOST_PENDING = 1024,   /* clients that have not joined */
    LEAST_PENDING = 16,    /* the same if the process may open few files */
    FILES_OF_OTHERS = 256, /* what the rest of the process may need to open */
    ACCEPTS = 64,          /* in one turn */
    READS = 16,            /* of one client in one turn */
    READ_BYTES = 64 << 10,
    EVENTS = 64
};
static const double ACCEPT_PAUSE = 0.1; /* seconds until accepting goes on after open files ran out */

/* ---- reading ----------------------------------------------------------------------------------------------------- */
/* lr_store_receive; a client that is gone is dropped. */
static ssize_t read_some(lr_store_server *s, lr_client *c, void *out, size_t size)
{
    const ssize_t n = lr_store_receive(c->fd, out, size);
    if (n < 0)
        lr_client_drop(s, c);
    return n;
}

static void request_complete(lr_store_server *s, lr_client *c)
{
    lr_client_request(s, c);
    lr_free(c->body); /* most members are idle, and should hold no buffers */
    c->body = NULL;
    c->head_used = c->body_used = c->body_cap = 0;
    c->skip = false;
}

/* One read of the next part of its frame. false: there is no more to read now. */
static bool read_turn(lr_store_server *s, lr_client *c)
{
    char scratch[READ_BYTES];
    if (c->stage == LR_CLIENT_LEAVING)
        return read_some(s, c, scratch, sizeof scratch) > 0;
    const size_t head = c->stage == LR_CLIENT_GREETED ? LR_STORE_HELLO : LR_STORE_REQUEST;
    if (c->head_used < head) {
        const ssize_t n = read_some(s, c, c->head + c->head_used, head - c->head_used);
        if (n <= 0)
            return false;
        c->head_used += (size_t)n;
        if (c->head_used < head)
            return true;
        if (c->stage == LR_CLIENT_GREETED) {
            c->head_used = 0;
            lr_client_hello(s, c);
            return true;
        }
        if (!lr_store_request_unpack(c->head, &c->request)) {
            lr_client_drop(s, c); /* what follows cannot be understood */
            return false;
        }
    }
    const size_t whole = (size_t)c->request.key_size + c->request.value_size;
    if (c->body_used < whole) {
        const size_t most = (size_t)lr_min64((int64_t)(whole - c->body_used), READ_BYTES);
        c->skip = c->skip || lr_reserve((void **)&c->body, &c->body_cap, c->body_used + most, 1) != LR_OK;
        const ssize_t n = read_some(s, c, c->skip ? scratch : c->body + c->body_used, most);
        if (n <= 0)
            return false;
        c->body_used += (size_t)n;
    }
    if (c->body_used == whole)
        request_complete(s, c);
    return true;
}

static void read_client(lr_store_server *s, lr_client *c)
{
    for (int i = 0; i < READS && c->fd >= 0 && c->out_size == 0; i++)
        if (!read_turn(s, c))
            return;
}

/* ---- accepting --------------------------------------------------------------------------------------------------- */
static void greet(lr_store_server *s, int fd)
{
    lr_client *c = lr_calloc(1, sizeof *c);
    if (c == NULL) {
        close(fd); /* it will try again */
        return;
    }
    lr_store_socket_tune(fd);
    c->fd = fd;
    c->rank = LR_STORE_OBSERVER;
    if (s->pending.count >= s->most_pending)
        lr_client_drop(s, s->pending.first);
    lr_clients_move(&s->pending, c);
    lr_client_set_deadline(s, c, lr_time() + LR_STORE_HANDSHAKE);
    lr_store_greeting_pack(c->greeting);
    memcpy(c->out, c->greeting, sizeof c->greeting);
    lr_client_send(s, c, sizeof c->greeting, NULL);
}

static void listen_to_new(lr_store_server *s, bool on)
{
    struct epoll_event e = {.events = on ? EPOLLIN : 0, .data.ptr = &s->listener};
    epoll_ctl(s->epoll, EPOLL_CTL_MOD, s->listener, &e);
    s->resume = on ? INFINITY : lr_time() + ACCEPT_PAUSE;
    s->next_deadline = fmin(s->next_deadline, s->resume);
}

static void accept_clients(lr_store_server *s)
{
    for (int i = 0; i < ACCEPTS; i++) {
        const int fd = accept4(s->listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd >= 0) {
            greet(s, fd);
        } else if (errno == EAGAIN || errno == EWOULDBLOCK) {
            return;
        } else if (errno == EMFILE || errno == ENFILE || errno == ENOBUFS || errno == ENOMEM) {
            if (s->pending.first == NULL) { /* members, or other parts of the process, have all files: try later */
                listen_to_new(s, false);
                return;
            }
            lr_client_drop(s, s->pending.first);
        } /* any other error concerns one connection, which is gone */
    }
}

/* ---- the thread -------------------------------------------------------------------------------------------------- */
static void expire(lr_store_server *s)
{
    const double now = lr_time();
    if (now < s->next_deadline)
        return;
    if (s->resume <= now)
        listen_to_new(s, true);
    s->next_deadline = s->resume;
    lr_clients *const lists[] = {&s->pending, &s->members};
    for (size_t i = 0; i < LR_COUNT_OF(lists); i++)
        for (lr_client *c = lists[i]->first, *next; c != NULL; c = next) {
            next = c->next;
            if (c->deadline <= now)
                lr_client_expire(s, c);
            else
                s->next_deadline = fmin(s->next_deadline, c->deadline);
        }
}

static void reset(lr_store_server *s, const lr_store_order *order)
{
    lr_members_dismiss(s);
    lr_store_table_free(s->table);
    lr_store_value_drop(s->failure);
    s->table = order->table;
    s->failure = order->failure;
    s->generation = order->generation;
    s->failed = false;
}

/* Carry out the order of another thread. false: to stop. */
static bool obey(lr_store_server *s)
{
    uint64_t count;
    if (read(s->wake, &count, sizeof count) < 0)
        return true; /* there was no order */
    pthread_mutex_lock(&s->mutex);
    const bool stop = s->order->stop;
    if (!stop)
        reset(s, s->order);
    s->order = NULL;
    pthread_cond_broadcast(&s->done);
    pthread_mutex_unlock(&s->mutex);
    return !stop;
}

static void *serve(void *context)
{
    lr_store_server *s = context;
    for (;;) {
        struct epoll_event events[EVENTS];
        const double left = (s->next_deadline - lr_time()) * 1000;
        const int wait = left > 60000 ? 60000 : left > 0 ? (int)left + 1 : 0;
        const int n = epoll_wait(s->epoll, events, EVENTS, wait);
        for (int i = 0; i < n; i++) {
            lr_client *c = events[i].data.ptr;
            if (events[i].data.ptr == &s->listener)
                accept_clients(s);
            else if (events[i].data.ptr == &s->wake) {
                if (!obey(s))
                    return NULL;
            } else if (c->fd >= 0 && c->out_size > 0)
                lr_client_flush(s, c);
            else if (c->fd >= 0)
                read_client(s, c);
        }
        expire(s);
        lr_clients_free(&s->dropped);
    }
}

/* Give the thread an order, and wait until it is carried out. */
static void post(lr_store_server *s, const lr_store_order *order)
{
    const uint64_t one = 1;
    pthread_mutex_lock(&s->mutex);
    while (s->order != NULL)
        pthread_cond_wait(&s->done, &s->mutex);
    s->order = order;
    (void)lr_fd_write(s->wake, &one, sizeof one);
    while (s->order == order)
        pthread_cond_wait(&s->done, &s->mutex);
    pthread_mutex_unlock(&s->mutex);
}

/* ---- the listening socket ---------------------------------------------------------------------------------------- */
static bool is_loopback(const struct sockaddr *a)
{
    if (a->sa_family == AF_INET) {
        struct sockaddr_in v4;
        memcpy(&v4, a, sizeof v4);
        return ntohl(v4.sin_addr.s_addr) >> 24 == 127;
    }
    struct sockaddr_in6 v6;
    memcpy(&v6, a, sizeof v6);
    return IN6_IS_ADDR_LOOPBACK(&v6.sin6_addr) ||
           (IN6_IS_ADDR_V4MAPPED(&v6.sin6_addr) && v6.sin6_addr.s6_addr[12] == 127);
}

/* A socket that listens at one address. -1: errno says why not. */
static int listen_at(const struct addrinfo *a)
{
    const int fd = socket(a->ai_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return -1;
    const int on = 1, off = 0;
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (a->ai_family == AF_INET6) /* "::" is every address, of IPv4 too */
        setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &off, sizeof off);
    if (bind(fd, a->ai_addr, a->ai_addrlen) == 0 && listen(fd, SOMAXCONN) == 0)
        return fd;
    const int code = errno;
    close(fd);
    errno = code;
    return -1;
}

static int port_of(int fd)
{
    struct sockaddr_storage a = {0};
    socklen_t size = sizeof a;
    char text[LR_STORE_ADDRESS];
    int port = 0;
    if (getsockname(fd, (struct sockaddr *)&a, &size) == 0) {
        lr_store_address((struct sockaddr *)&a, size, true, text, sizeof text);
        sscanf(strrchr(text, ':') + 1, "%d", &port);
    }
    return port;
}

static int open_listener(lr_store_server *s, const char *host, int port)
{
    char service[16];
    snprintf(service, sizeof service, "%d", port);
    const struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_NUMERICSERV};
    struct addrinfo *list = NULL;
    const int code = getaddrinfo(host, service, &hints, &list);
    if (code != 0)
        return lr_fail(LR_EINVAL, "cannot serve the store on '%s': %s", host, gai_strerror(code));
    int status = LR_OK;
    for (const struct addrinfo *a = list; a != NULL && s->listener < 0 && status == LR_OK; a = a->ai_next) {
        if (*s->secret == 0 && !is_loopback(a->ai_addr))
            status =
                lr_fail(LR_EINVAL,
                        "a store on %s can be reached from other machines and needs a secret: give all machines of "
                        "the job the same one, or serve on 127.0.0.1",
                        host);
        else
            s->listener = listen_at(a);
    }
    if (status == LR_OK && s->listener < 0)
        status = lr_fail(LR_EIO, "cannot serve the store on %s, port %d: %s%s", host, port, strerror(errno),
                         errno == EADDRINUSE ? "; choose another port, or 0 for any free one" : "");
    freeaddrinfo(list);
    if (status == LR_OK)
        s->port = port_of(s->listener);
    return status;
}

/* Raise the soft limit of open files to what a whole job needs, or as far as the hard limit allows. If that is not enough, fewer
 * clients may wait to join. */
static void make_room_for_files(lr_store_server *s)
{
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) != 0)
        return;
    const rlim_t need = (rlim_t)s->world_size + MOST_PENDING + FILES_OF_OTHERS;
    if (limit.rlim_cur < need) {
        limit.rlim_cur = limit.rlim_max < need ? limit.rlim_max : need;
        if (setrlimit(RLIMIT_NOFILE, &limit) != 0)
            getrlimit(RLIMIT_NOFILE, &limit);
    }
    if (limit.rlim_cur < need)
        s->most_pending = (int)lr_max64((int64_t)limit.rlim_cur - s->world_size - FILES_OF_OTHERS, LEAST_PENDING);
}

/* ---- the public functions ---------------------------------------------------------------------------------------- */
static void destroy(lr_store_server *s)
{
    lr_clients_free(&s->pending);
    lr_clients_free(&s->members);
    lr_clients_free(&s->dropped);
    const int fds[] = {s->listener, s->epoll, s->wake};
    for (size_t i = 0; i < LR_COUNT_OF(fds); i++)
        if (fds[i] >= 0)
            close(fds[i]);
    lr_store_table_free(s->table);
    lr_store_value_drop(s->failure);
    lr_store_secret_free(s->secret);
    lr_free(s->ranks);
    pthread_mutex_destroy(&s->mutex);
    pthread_cond_destroy(&s->done);
    lr_free(s);
}

static int open_server(lr_store_server *s, const char *host, int port, const char *secret)
{
    s->ranks = lr_calloc((size_t)s->world_size, sizeof *s->ranks);
    s->table = lr_store_table_new();
    s->failure = lr_store_value_new(NULL, LR_STORE_TEXT);
    s->secret = lr_store_secret_copy(secret);
    if (s->ranks == NULL || s->table == NULL || s->failure == NULL || s->secret == NULL)
        return LR_ENOMEM;
    int status = open_listener(s, host, port);
    if (status != LR_OK)
        return status;
    make_room_for_files(s);
    s->epoll = epoll_create1(EPOLL_CLOEXEC);
    s->wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    struct epoll_event listener = {.events = EPOLLIN, .data.ptr = &s->listener};
    struct epoll_event wake = {.events = EPOLLIN, .data.ptr = &s->wake};
    if (s->epoll < 0 || s->wake < 0 || epoll_ctl(s->epoll, EPOLL_CTL_ADD, s->listener, &listener) != 0 ||
        epoll_ctl(s->epoll, EPOLL_CTL_ADD, s->wake, &wake) != 0)
        return lr_fail_errno("cannot serve the store on %s", host);
    return lr_thread_start(&s->thread, serve, s);
}

int lr_store_serve(lr_store_server **out, const char *host, int port, const char *secret, int world_size)
{
    if (host == NULL || *host == 0)
        return lr_fail(LR_EINVAL, "the store needs an address to serve on, such as 127.0.0.1");
    if (port < 0 || port > 65535)
        return lr_fail(LR_EINVAL, "port %d is not a port: 1 to 65535, or 0 for any free one", port);
    if (world_size < 1 || world_size > LR_STORE_RANKS)
        return lr_fail(LR_EINVAL, "world_size is %d, 1 to %d are possible", world_size, LR_STORE_RANKS);
    int status = lr_store_crypto();
    if (status != LR_OK)
        return status;
    lr_store_server *s = lr_calloc(1, sizeof *s);
    if (s == NULL)
        return LR_ENOMEM;
    s->listener = s->epoll = s->wake = -1;
    s->world_size = world_size;
    s->most_pending = MOST_PENDING;
    s->next_deadline = s->resume = INFINITY;
    pthread_mutex_init(&s->mutex, NULL);
    pthread_cond_init(&s->done, NULL);
    status = open_server(s, host, port, secret);
    if (status == LR_OK)
        *out = s;
    else
        destroy(s);
    return status;
}

int lr_store_server_port(const lr_store_server *s)
{
    return s->port;
}

int lr_store_server_reset(lr_store_server *s, int generation)
{
    if (generation < 0)
        return lr_fail(LR_EINVAL, "generation is %d, it counts from 0", generation);
    const lr_store_order order = {
        .generation = generation, .table = lr_store_table_new(), .failure = lr_store_value_new(NULL, LR_STORE_TEXT)};
    if (order.table == NULL || order.failure == NULL) {
        lr_store_table_free(order.table);
        lr_store_value_drop(order.failure);
        return LR_ENOMEM;
    }
    post(s, &order);
    return LR_OK;
}

void lr_store_server_stop(lr_store_server *s)
{
    if (s == NULL)
        return;
    post(s, &(lr_store_order){.stop = true});
    pthread_join(s->thread, NULL);
    destroy(s);
}
