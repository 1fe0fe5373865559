/* store_connections.c: the server's end of one connection: its place in a list of the server, what is sent to it, and its end.
 *
 * Sending never blocks: what the socket does not take now goes when epoll says so. */
#define _GNU_SOURCE
#include "dist/store_server.h"
#include <math.h>
#include <poll.h>
#include <sys/epoll.h>
#include <unistd.h>

void lr_clients_move(lr_clients *to, lr_client *c)
{
    lr_clients *from = c->list;
    if (from != NULL) {
        *(c->previous != NULL ? &c->previous->next : &from->first) = c->next;
        *(c->next != NULL ? &c->next->previous : &from->last) = c->previous;
        from->count--;
    }
    c->list = to;
    c->previous = to->last;
    c->next = NULL;
    *(to->last != NULL ? &to->last->next : &to->first) = c;
    to->last = c;
    to->count++;
}

void lr_clients_free(lr_clients *list)
{
    for (lr_client *c = list->first, *next; c != NULL; c = next) {
        next = c->next;
        if (c->fd >= 0)
            close(c->fd);
        lr_store_value_drop(c->out_value);
        lr_free(c->wait_key);
        lr_free(c->body);
        lr_free(c);
    }
    *list = (lr_clients){0};
}

void lr_client_set_deadline(lr_store_server *s, lr_client *c, double deadline)
{
    c->deadline = deadline;
    s->next_deadline = fmin(s->next_deadline, deadline);
}

void lr_client_end_wait(lr_store_server *s, lr_client *c)
{
    lr_free(c->wait_key);
    c->wait_key = NULL;
    lr_client_set_deadline(s, c, INFINITY);
}

/* It is no longer a member: its rank is free, and its get is forgotten. */
static void forget(lr_store_server *s, lr_client *c)
{
    if (c->rank != LR_STORE_OBSERVER && s->ranks[c->rank] == c)
        s->ranks[c->rank] = NULL;
    c->rank = LR_STORE_OBSERVER;
    lr_client_end_wait(s, c);
}

void lr_client_drop(lr_store_server *s, lr_client *c)
{
    if (c->fd < 0)
        return;
    /* Closing alone would not remove it from epoll while a forked process that has not called exec yet holds it too. */
    (void)epoll_ctl(s->epoll, EPOLL_CTL_DEL, c->fd, NULL);
    close(c->fd);
    c->fd = -1;
    forget(s, c);
    lr_clients_move(&s->dropped, c);
}

static void watch(lr_store_server *s, lr_client *c, uint32_t events)
{
    if (c->watched == events)
        return;
    struct epoll_event e = {.events = events, .data.ptr = c};
    if (epoll_ctl(s->epoll, c->watched == 0 ? EPOLL_CTL_ADD : EPOLL_CTL_MOD, c->fd, &e) != 0)
        lr_client_drop(s, c); /* the kernel is out of memory */
    else
        c->watched = events;
}

void lr_client_flush(lr_store_server *s, lr_client *c)
{
    const struct iovec parts[] = {
        {c->out, c->out_size},
        {c->out_value != NULL ? c->out_value->bytes : NULL, c->out_value != NULL ? c->out_value->size : 0}};
    if (lr_store_send(c->fd, parts, 2, &c->out_sent) != 0) {
        lr_client_drop(s, c);
        return;
    }
    const bool done = c->out_sent == parts[0].iov_len + parts[1].iov_len;
    if (done) {
        lr_store_value_drop(c->out_value);
        c->out_value = NULL;
        c->out_size = 0;
        if (c->stage == LR_CLIENT_LEAVING)
            shutdown(c->fd, SHUT_WR);
    }
    watch(s, c, done ? EPOLLIN : EPOLLOUT);
}

void lr_client_send(lr_store_server *s, lr_client *c, size_t size, lr_store_value *value)
{
    if (c->fd < 0)
        return;
    c->out_size = size;
    c->out_sent = 0;
    c->out_value = value != NULL ? lr_store_value_hold(value) : NULL;
    lr_client_flush(s, c);
}

void lr_client_leave(lr_store_server *s, lr_client *c)
{
    if (c->fd < 0)
        return;
    forget(s, c);
    c->stage = LR_CLIENT_LEAVING;
    lr_clients_move(&s->pending, c);
    lr_client_set_deadline(s, c, lr_time() + LR_STORE_HANDSHAKE);
    /* What it has sent is still read: closing a socket with unread bytes would discard the last message to it. */
    if (c->out_size == 0)
        shutdown(c->fd, SHUT_WR);
}

bool lr_client_has_left(const lr_client *c)
{
    struct pollfd p = {.fd = c->fd, .events = POLLRDHUP};
    return poll(&p, 1, 0) == 1;
}
