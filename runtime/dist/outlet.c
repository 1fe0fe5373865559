/* outlet.c: the launcher's standard output and error, written without ever waiting for their readers.
 *
 * A terminal that is held (Ctrl-S, a connection that hangs), or a reader that does not read, blocks a writer for as long as it
 * likes, and a launcher that is blocked neither sees a rank die nor passes on a signal. So terminals and pipes are opened again
 * as non-blocking (O_NONBLOCK belongs to the open file, which other processes share), sockets are written with send, and what
 * cannot be written now is kept, in the order of the writes to both streams. Files are written as usual.
 *
 * Invariant: kept is the sum of what remains of chunks head..count-1; a broken stream has none of them. */
#define _GNU_SOURCE
#include "dist/spawn.h"
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

typedef struct chunk {
    char *data;
    size_t size, done;
    int stream;
} chunk;

typedef struct stream {
    int fd; /* -1: broken */
    bool socket;
} stream;

struct lr_outlet {
    stream streams[2];
    chunk *chunks;
    size_t head, count, cap;
    int64_t kept;
};

static stream open_stream(int fd)
{
    struct stat st;
    stream s = {.fd = -1};
    if (fstat(fd, &st) != 0)
        return s;
    s.socket = S_ISSOCK(st.st_mode);
    if (S_ISFIFO(st.st_mode) || isatty(fd))
        s.fd = lr_fd_moved_up(open(fd == STDOUT_FILENO ? "/proc/self/fd/1" : "/proc/self/fd/2",
                                   O_WRONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC));
    if (s.fd < 0) /* another user's pipe cannot be opened again */
        s.fd = lr_fd_moved_up(fcntl(fd, F_DUPFD_CLOEXEC, 0));
    return s;
}

int lr_outlet_new(lr_outlet **out)
{
    lr_outlet *o = lr_calloc(1, sizeof *o);
    if (o == NULL)
        return LR_ENOMEM;
    o->streams[0] = open_stream(STDOUT_FILENO);
    o->streams[1] = open_stream(STDERR_FILENO);
    *out = o;
    return LR_OK;
}

/* The stream can no longer be written: drop what was kept for it. */
static void give_up(lr_outlet *o, int which)
{
    lr_fd_close(&o->streams[which].fd);
    size_t kept = o->head;
    for (size_t i = o->head; i < o->count; i++) {
        if (o->chunks[i].stream != which) {
            o->chunks[kept++] = o->chunks[i];
            continue;
        }
        o->kept -= (int64_t)(o->chunks[i].size - o->chunks[i].done);
        lr_free(o->chunks[i].data);
    }
    o->count = kept;
}

/* Write what can be written now: the number of bytes, or -1 with errno. */
static ssize_t write_some(const stream *s, const char *data, size_t size)
{
    ssize_t n;
    do
        n = s->socket ? send(s->fd, data, size, MSG_DONTWAIT | MSG_NOSIGNAL) : write(s->fd, data, size);
    while (n < 0 && errno == EINTR);
    return n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK) ? 0 : n;
}

static int broken(lr_outlet *o, int which)
{
    const int code = errno;
    give_up(o, which);
    errno = code;
    return lr_fail_errno("cannot write to standard %s", which == 0 ? "output" : "error");
}

int lr_outlet_write(lr_outlet *o, int number, const char *data, int64_t size)
{
    if (number != STDOUT_FILENO && number != STDERR_FILENO)
        return lr_fail(LR_EINVAL, "stream is %d, expected 1 or 2", number);
    const int which = number - 1;
    if (o->streams[which].fd < 0)
        return LR_OK;
    size_t done = 0;
    while (o->kept == 0 && done < (size_t)size) {
        const ssize_t n = write_some(&o->streams[which], data + done, (size_t)size - done);
        if (n < 0)
            return broken(o, which);
        if (n == 0)
            break;
        done += (size_t)n;
    }
    if (done == (size_t)size)
        return LR_OK;
    if (o->head > 0) {
        memmove(o->chunks, o->chunks + o->head, (o->count - o->head) * sizeof *o->chunks);
        o->count -= o->head;
        o->head = 0;
    }
    const size_t rest = (size_t)size - done;
    if (lr_reserve((void **)&o->chunks, &o->cap, o->count + 1, sizeof *o->chunks) != LR_OK)
        return LR_ENOMEM;
    char *copy = lr_alloc(rest);
    if (copy == NULL)
        return LR_ENOMEM;
    memcpy(copy, data + done, rest);
    o->chunks[o->count++] = (chunk){copy, rest, 0, which};
    o->kept += (int64_t)rest;
    return LR_OK;
}

int lr_outlet_flush(lr_outlet *o, double timeout, int64_t *left)
{
    const double until = lr_time() + (timeout > 0 ? timeout : 0);
    int status = LR_OK;
    while (o->head < o->count) {
        chunk *c = &o->chunks[o->head];
        const ssize_t n = write_some(&o->streams[c->stream], c->data + c->done, c->size - c->done);
        if (n < 0) {
            status = broken(o, c->stream);
            continue;
        }
        c->done += (size_t)n;
        o->kept -= n;
        if (c->done == c->size) {
            lr_free(c->data);
            o->head++;
        }
        const double rest = until - lr_time();
        if (n > 0)
            continue;
        if (rest <= 0)
            break;
        struct pollfd p = {.fd = o->streams[c->stream].fd, .events = POLLOUT};
        const struct timespec limit = {(time_t)rest, (long)((rest - (double)(time_t)rest) * 1e9)};
        (void)ppoll(&p, 1, &limit, NULL);
    }
    *left = o->kept;
    return status;
}

void lr_outlet_free(lr_outlet *o)
{
    if (o == NULL)
        return;
    for (size_t i = o->head; i < o->count; i++)
        lr_free(o->chunks[i].data);
    lr_fd_close(&o->streams[0].fd);
    lr_fd_close(&o->streams[1].fd);
    lr_free(o->chunks);
    lr_free(o);
}
