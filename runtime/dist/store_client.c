/* store_client.c: a member's connection to the store of its job.
 *
 * A call sends one request and waits for the reply with its sequence number. A get may end before, if it is interrupted or out
 * of time. The next call discards its reply, should one still come, and also ends the wait on the server's side. Requests are
 * always sent whole, so the connection stays usable whatever happens to a call.
 *
 * Waiting is done in slices; the interrupt flag is looked at in between. */
#define _GNU_SOURCE
#include "dist/store.h"
#include <errno.h>
#include <math.h>
#include <netdb.h>
#include <poll.h>
#include <sodium.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

_Static_assert(sizeof LR_VERSION - 1 <= LR_STORE_VERSION, "a hello has room for this version");

static const double SLICE = 0.1;                        /* seconds between looks at the interrupt flag */
static const double PATIENCE = 30;                      /* seconds for an answer that waits for no other member */
static const double MOST_WAIT = 1e9;                    /* seconds; more counts as for ever */
static const double FIRST_PAUSE = 0.02, LAST_PAUSE = 1; /* seconds between attempts to connect */
enum { NOWHERE = 4096 };                                /* bytes that are discarded at a time */
enum { RETRY = 1 };                                     /* an attempt found no server yet, or one that went away */

struct lr_store {
    int fd;            /* -1: lost */
    char *address;     /* "host:port" */
    uint32_t sequence; /* of the latest request */
    double patience;   /* seconds */
    /* the reply that is being received */
    uint8_t head[LR_STORE_REPLY];
    size_t head_used, body_used;
    lr_store_reply reply;
    char *value;                  /* of the reply to the latest request, NUL-terminated */
    char text[LR_STORE_TEXT + 1]; /* of a reply that is an error */
    bool starved;                 /* there was no memory for the value */
};

/* ---- waiting ----------------------------------------------------------------------------------------------------- */
/* Waits until fd (-1: none) is ready for one of the events: LR_OK, LR_ETIMEOUT, or LR_EINTERRUPTED if interrupts count. The caller
 * writes the message. */
static int wait_for(int fd, short events, double deadline, bool interrupts)
{
    for (;;) {
        if (interrupts && lr_interrupt_take())
            return LR_EINTERRUPTED;
        const double left = deadline - lr_time();
        struct pollfd p = {.fd = fd, .events = events};
        const int n = poll(&p, 1, left <= 0 ? 0 : (int)ceil(fmin(left, SLICE) * 1000));
        if (n > 0)
            return LR_OK;
        if (left <= 0)
            return LR_ETIMEOUT;
    }
}

/* ---- replies ----------------------------------------------------------------------------------------------------- */
static int lost(lr_store *s)
{
    if (s->fd >= 0)
        close(s->fd);
    s->fd = -1;
    return lr_fail(LR_EPEER,
                   "the connection to the job's store at %s is lost: the launcher there has ended, or its machine "
                   "cannot be reached",
                   s->address);
}

static void forget_value(lr_store *s)
{
    lr_free(s->value);
    s->value = NULL;
}

/* Where the next bytes of the reply go, and how many; 0: it is complete. Bytes that nobody wants go to nowhere[NOWHERE]. */
static size_t next_part(lr_store *s, char *nowhere, void **to)
{
    if (s->head_used < sizeof s->head) {
        *to = s->head + s->head_used;
        return sizeof s->head - s->head_used;
    }
    const size_t left = s->reply.size - s->body_used;
    if (s->reply.status != LR_OK)
        *to = s->text + s->body_used;
    else if (s->value != NULL)
        *to = s->value + s->body_used;
    else
        *to = nowhere;
    return *to == nowhere && left > NOWHERE ? NOWHERE : left;
}

/* The fixed part of a reply is here: make room for the rest, if it is wanted. */
static int start_body(lr_store *s)
{
    if (!lr_store_reply_unpack(s->head, &s->reply))
        return lost(s);
    const size_t size = s->reply.size;
    s->body_used = 0;
    s->starved = false;
    if (s->reply.status != LR_OK) {
        s->text[size] = 0;
    } else if (size > 0 && s->reply.sequence == s->sequence) {
        s->value = lr_alloc(size + 1);
        s->starved = s->value == NULL;
        if (!s->starved)
            s->value[size] = 0;
    }
    return LR_OK;
}

/* Read what there is, and skip replies that came too late. *done: the reply to the latest request is complete. */
static int read_reply(lr_store *s, bool *done)
{
    *done = false;
    for (;;) {
        char nowhere[NOWHERE];
        void *to = NULL;
        const size_t want = next_part(s, nowhere, &to);
        if (want == 0) {
            s->head_used = 0;
            if (s->reply.sequence != s->sequence)
                continue;
            *done = true;
            return LR_OK;
        }
        const ssize_t n = lr_store_receive(s->fd, to, want);
        if (n == 0)
            return LR_OK;
        if (n < 0)
            return lost(s);
        if (s->head_used == sizeof s->head) {
            s->body_used += (size_t)n;
            continue;
        }
        s->head_used += (size_t)n;
        if (s->head_used == sizeof s->head && start_body(s) != LR_OK)
            return LR_EPEER;
    }
}

/* ---- a call ------------------------------------------------------------------------------------------------------ */
static int silent(const lr_store *s, double seconds)
{
    return lr_fail(LR_ETIMEOUT, "the job's store at %s has not answered for %.0f s; is the launcher there stopped?",
                   s->address, seconds);
}

static int send_request(lr_store *s, lr_store_request *r, const char *key, const void *value)
{
    uint8_t head[LR_STORE_REQUEST];
    r->sequence = ++s->sequence;
    lr_store_request_pack(head, r);
    const struct iovec parts[] = {
        {head, sizeof head}, {(void *)(uintptr_t)key, r->key_size}, {(void *)(uintptr_t)value, r->value_size}};
    const double deadline = lr_time() + s->patience;
    for (size_t sent = 0;;) {
        if (lr_store_send(s->fd, parts, 3, &sent) != 0)
            return lost(s);
        if (sent == sizeof head + r->key_size + r->value_size)
            return LR_OK;
        bool done; /* what comes now is a late reply; reading it lets the server go on to this request */
        if (wait_for(s->fd, POLLIN | POLLOUT, deadline, false) != LR_OK) {
            lost(s); /* half a request was sent: the connection cannot be used any more */
            return silent(s, s->patience);
        }
        const int status = read_reply(s, &done);
        if (status != LR_OK)
            return status;
    }
}

/* Send a request and wait for its reply: LR_OK with s->reply and s->value, or the error in the reply. wait: seconds that the
 * server may take longer than for an immediate answer; an interrupt then ends the call. */
static int call(lr_store *s, lr_store_request r, const char *key, const void *value, double wait)
{
    if (s->fd < 0)
        return lost(s);
    forget_value(s);
    int status = send_request(s, &r, key, value);
    const double deadline = lr_time() + wait + s->patience;
    for (bool done = false; status == LR_OK && !done;) {
        status = wait_for(s->fd, POLLIN, deadline, wait > 0);
        if (status == LR_OK)
            status = read_reply(s, &done);
        else if (status == LR_ETIMEOUT)
            return silent(s, wait + s->patience);
    }
    if (status != LR_OK)
        return status == LR_EINTERRUPTED ? lr_fail(status, "interrupted while waiting for key '%s'", key) : status;
    if (s->reply.status != LR_OK)
        return lr_fail(s->reply.status, "%s", *s->text ? s->text : lr_status_text(s->reply.status));
    return s->starved ? LR_ENOMEM : LR_OK; /* lr_alloc has set the error */
}

void lr_store_set_patience(lr_store *s, double seconds)
{
    s->patience = seconds;
}

static int check_key(const char *key, uint32_t *size)
{
    const size_t n = key != NULL ? strlen(key) : 0;
    if (n == 0 || n > LR_STORE_KEY)
        return lr_fail(LR_EINVAL, "a key of %zu bytes: keys of the store have 1 to %d", n, LR_STORE_KEY);
    *size = (uint32_t)n;
    return LR_OK;
}

int lr_store_set(lr_store *s, const char *key, const void *value, int64_t size)
{
    lr_store_request r = {.op = LR_STORE_SET};
    const int status = check_key(key, &r.key_size);
    if (status != LR_OK)
        return status;
    if (size < 0 || size > LR_STORE_VALUE)
        return lr_fail(LR_EINVAL, "the value of key '%s' has %lld bytes, the store takes 0 to %d", key, (long long)size,
                       LR_STORE_VALUE);
    r.value_size = (uint32_t)size;
    return call(s, r, key, value, 0);
}

int lr_store_get(lr_store *s, const char *key, double timeout, char **value, int64_t *size)
{
    lr_store_request r = {.op = LR_STORE_GET};
    int status = check_key(key, &r.key_size);
    if (status != LR_OK)
        return status;
    if (!(timeout >= 0))
        return lr_fail(LR_EINVAL, "timeout is %g, it must be 0 (do not wait) or seconds", timeout);
    const double wait = fmin(timeout, MOST_WAIT);
    r.number = (int64_t)ceil(wait * 1000);
    status = call(s, r, key, NULL, wait);
    if (status == LR_ETIMEOUT && s->reply.sequence == s->sequence && s->reply.status == LR_ETIMEOUT)
        return timeout > 0 ? lr_fail(LR_ETIMEOUT, "nobody set key '%s' within %g s", key, timeout)
                           : lr_fail(LR_ETIMEOUT, "key '%s' is not set", key);
    if (status != LR_OK)
        return status;
    if (s->value == NULL && (s->value = lr_strdup("")) == NULL)
        return LR_ENOMEM;
    *value = s->value;
    *size = s->reply.size;
    s->value = NULL;
    return LR_OK;
}

int lr_store_add(lr_store *s, const char *key, int64_t amount, int64_t *sum)
{
    lr_store_request r = {.op = LR_STORE_ADD, .number = amount};
    int status = check_key(key, &r.key_size);
    if (status == LR_OK)
        status = call(s, r, key, NULL, 0);
    if (status == LR_OK)
        *sum = s->reply.number;
    return status;
}

int lr_store_fail(lr_store *s, const char *why)
{
    if (why == NULL || *why == 0)
        why = "a member of the job failed and did not say why";
    return call(s, (lr_store_request){.op = LR_STORE_FAIL, .value_size = (uint32_t)strnlen(why, LR_STORE_TEXT)}, NULL,
                why, 0);
}

void lr_store_close(lr_store *s)
{
    if (s == NULL)
        return;
    if (s->fd >= 0)
        close(s->fd);
    lr_free(s->value);
    lr_free(s->address);
    lr_free(s);
}

/* ---- connecting -------------------------------------------------------------------------------------------------- */
/* Read or write size bytes during the handshake. */
static int transfer(lr_store *s, bool out, void *bytes, size_t size, double deadline)
{
    const struct iovec part = {bytes, size};
    for (size_t done = 0; done < size;) {
        const int status = wait_for(s->fd, out ? POLLOUT : POLLIN, deadline, true);
        if (status == LR_EINTERRUPTED)
            return lr_fail(status, "interrupted while connecting to the job's store at %s", s->address);
        if (status != LR_OK) {
            lr_fail(LR_ETIMEOUT, "the program that listens there does not answer");
            return RETRY;
        }
        const ssize_t n =
            out ? lr_store_send(s->fd, &part, 1, &done) : lr_store_receive(s->fd, (char *)bytes + done, size - done);
        if (n < 0) {
            lr_fail(LR_EIO, "the program that listens there closed the connection");
            return RETRY;
        }
        done += out ? 0 : (size_t)n;
    }
    return LR_OK;
}

static int handshake(lr_store *s, const lr_store_member *who, double deadline)
{
    const char *secret = who->secret != NULL ? who->secret : "";
    uint8_t greeting[LR_STORE_GREETING], hello[LR_STORE_HELLO], verdict[LR_STORE_VERDICT];
    int status = transfer(s, false, greeting, sizeof greeting, deadline);
    if (status != LR_OK)
        return status;
    if (!lr_store_greeting_valid(greeting))
        return lr_fail(LR_EREFUSED,
                       "the program that listens at %s is not the store of a job; is this the port of another program?",
                       s->address);
    lr_store_hello h = {.rank = who->rank, .world_size = who->world_size, .generation = who->generation};
    snprintf(h.version, sizeof h.version, "%s", lr_version());
    lr_store_hello_pack(hello, &h, greeting, secret);
    status = transfer(s, true, hello, sizeof hello, deadline);
    if (status == LR_OK)
        status = transfer(s, false, verdict, sizeof verdict, deadline);
    if (status != LR_OK)
        return status;
    int32_t answer;
    uint32_t size;
    lr_store_verdict_unpack(verdict, &answer, &size);
    if (size > LR_STORE_TEXT)
        return lr_fail(LR_EREFUSED, "the program that listens at %s does not speak like the store of a job",
                       s->address);
    status = transfer(s, false, s->text, size, deadline);
    if (status != LR_OK)
        return status;
    s->text[size] = 0;
    if (!lr_store_verdict_proven(verdict, s->text, greeting, hello, secret))
        return answer == LR_EREFUSED
                   ? lr_fail(LR_EREFUSED, "the job's store at %s refuses this process: the secret differs", s->address)
                   : lr_fail(LR_EREFUSED,
                             "the program that listens at %s does not prove that it knows the secret of this job",
                             s->address);
    if (answer == LR_OK)
        return LR_OK;
    return answer == LR_EPEER
               ? lr_fail(answer, "%s", s->text)
               : lr_fail(LR_EREFUSED, "the job's store at %s refuses this process: %s", s->address, s->text);
}

/* If no program listens at a port of this machine, the system may choose that port for our end, and connect the socket to
 * itself. */
static bool is_own_echo(int fd)
{
    struct sockaddr_storage here = {0}, there = {0};
    socklen_t here_size = sizeof here, there_size = sizeof there;
    return getsockname(fd, (struct sockaddr *)&here, &here_size) == 0 &&
           getpeername(fd, (struct sockaddr *)&there, &there_size) == 0 && here_size == there_size &&
           memcmp(&here, &there, here_size) == 0;
}

/* One attempt at one address: LR_OK, RETRY (see lr_last_error) or a status that another attempt would not change. */
static int attempt(lr_store *s, const struct addrinfo *a, const lr_store_member *who, double deadline)
{
    deadline = fmin(deadline, lr_time() + LR_STORE_HANDSHAKE);
    s->fd = socket(a->ai_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (s->fd < 0) {
        lr_fail_errno("cannot open a socket");
        return RETRY;
    }
    lr_store_socket_tune(s->fd);
    int status = LR_OK;
    if (connect(s->fd, a->ai_addr, a->ai_addrlen) != 0) {
        int code = errno;
        socklen_t size = sizeof code;
        if (code == EINPROGRESS || code == EINTR) {
            status = wait_for(s->fd, POLLOUT, deadline, true);
            if (status == LR_ETIMEOUT)
                code = ETIMEDOUT;
            else if (status == LR_OK)
                getsockopt(s->fd, SOL_SOCKET, SO_ERROR, &code, &size);
        }
        if (status == LR_EINTERRUPTED) {
            lr_fail(status, "interrupted while connecting to the job's store at %s", s->address);
        } else if (code != 0) {
            lr_fail(LR_EIO, "%s", strerror(code));
            status = RETRY;
        }
    }
    if (status == LR_OK && is_own_echo(s->fd)) {
        lr_fail(LR_EIO, "%s", strerror(ECONNREFUSED));
        status = RETRY;
    }
    if (status == LR_OK)
        status = handshake(s, who, deadline);
    if (status != LR_OK) {
        close(s->fd);
        s->fd = -1;
    }
    return status;
}

/* One attempt at each address of host. */
static int attempt_all(lr_store *s, const char *host, int port, const lr_store_member *who, double deadline)
{
    char service[16];
    snprintf(service, sizeof service, "%d", port);
    const struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_NUMERICSERV};
    struct addrinfo *list = NULL;
    const int code = getaddrinfo(host, service, &hints, &list);
    if (code == EAI_AGAIN) {
        lr_fail(LR_EIO, "%s", gai_strerror(code));
        return RETRY;
    }
    if (code != 0)
        return lr_fail(code == EAI_MEMORY ? LR_ENOMEM : LR_ENOTFOUND, "there is no machine '%s': %s", host,
                       gai_strerror(code));
    int status = RETRY;
    for (const struct addrinfo *a = list; a != NULL && status == RETRY; a = a->ai_next)
        status = attempt(s, a, who, deadline);
    freeaddrinfo(list);
    return status;
}

static int connect_until(lr_store *s, const char *host, int port, const lr_store_member *who, double timeout)
{
    const double deadline = lr_time() + fmin(timeout, MOST_WAIT);
    for (double pause = FIRST_PAUSE;; pause = fmin(2 * pause, LAST_PAUSE)) {
        int status = attempt_all(s, host, port, who, deadline);
        if (status != RETRY)
            return status;
        char why[256];
        snprintf(why, sizeof why, "%s", lr_last_error());
        const double share =
            0.5 + randombytes_uniform(1024) / 2048.0; /* so that a thousand ranks do not all come at the same time */
        status = lr_time() >= deadline ? LR_ETIMEOUT : wait_for(-1, 0, fmin(deadline, lr_time() + share * pause), true);
        if (status == LR_EINTERRUPTED)
            return lr_fail(status, "interrupted while connecting to the job's store at %s", s->address);
        if (lr_time() >= deadline)
            return lr_fail(LR_ETIMEOUT,
                           "nobody serves the job's store at %s within %g s (%s); is the launcher of the first machine "
                           "running, and can its port be reached from here?",
                           s->address, timeout, why);
    }
}

static int check_member(const char *host, int port, const lr_store_member *who, double timeout)
{
    if (host == NULL || *host == 0)
        return lr_fail(LR_EINVAL, "the address of the job's store is missing");
    if (port < 1 || port > 65535)
        return lr_fail(LR_EINVAL, "port %d is not a port: 1 to 65535", port);
    if (who->world_size < 1)
        return lr_fail(LR_EINVAL, "world_size is %d, at least 1 is needed", who->world_size);
    if (who->rank < LR_STORE_OBSERVER || who->rank >= who->world_size)
        return lr_fail(LR_EINVAL, "rank is %d, with %d ranks it is 0 to %d", who->rank, who->world_size,
                       who->world_size - 1);
    if (who->generation < 0)
        return lr_fail(LR_EINVAL, "generation is %d, it counts from 0", who->generation);
    if (!(timeout >= 0))
        return lr_fail(LR_EINVAL, "timeout is %g, it must be 0 or more seconds", timeout);
    return lr_store_crypto();
}

int lr_store_connect(lr_store **out, const char *host, int port, const lr_store_member *who, double timeout)
{
    int status = check_member(host, port, who, timeout);
    if (status != LR_OK)
        return status;
    lr_store *s = lr_calloc(1, sizeof *s);
    if (s == NULL)
        return LR_ENOMEM;
    s->fd = -1;
    s->patience = PATIENCE;
    s->address = lr_format(strchr(host, ':') != NULL ? "[%s]:%d" : "%s:%d", host, port);
    status = s->address != NULL ? connect_until(s, host, port, who, timeout) : LR_ENOMEM;
    if (status == LR_OK)
        *out = s;
    else
        lr_store_close(s);
    return status;
}
