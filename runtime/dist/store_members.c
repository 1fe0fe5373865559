/* store_members.c: who may join a job, and what its members ask of the store.
 *
 * Invariants
 *   - A client without proof of the secret learns only that it is refused, and changes nothing.
 *   - Once the job has failed, every request and every waiting get is answered with the reason.
 *   - A new request ends the get that waits on the same connection: a client whose get was interrupted can go on. */
#define _GNU_SOURCE
#include "dist/store_server.h"
#include <ctype.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

/* ---- replies ----------------------------------------------------------------------------------------------------- */
static void reply(lr_store_server *s, lr_client *c, uint32_t sequence, int status, int64_t number, lr_store_value *v)
{
    lr_store_reply_pack(c->out, &(lr_store_reply){sequence, status, number, v != NULL ? v->size : 0});
    lr_client_send(s, c, LR_STORE_REPLY, v);
}

/* Replies with status and this thread's last error; without memory for the text, with status alone. */
static void reply_error(lr_store_server *s, lr_client *c, uint32_t sequence, int status)
{
    const char *text = lr_last_error();
    lr_store_value *v = lr_store_value_new(text, strnlen(text, LR_STORE_TEXT));
    reply(s, c, sequence, status, 0, v);
    lr_store_value_drop(v);
}

/* Answer the get of c that waits. */
static void wake(lr_store_server *s, lr_client *c, int status, lr_store_value *v)
{
    const uint32_t sequence = c->wait_sequence;
    lr_client_end_wait(s, c);
    reply(s, c, sequence, status, 0, v);
}

/* Every get that waits for key gets v. A client that cannot be written to leaves the list meanwhile. */
static void wake_key(lr_store_server *s, const char *key, uint32_t size, lr_store_value *v)
{
    for (lr_client *c = s->members.first, *next; c != NULL; c = next) {
        next = c->next;
        if (c->wait_key != NULL && c->wait_key_size == size && memcmp(c->wait_key, key, size) == 0)
            wake(s, c, LR_OK, v);
    }
}

static void wake_all(lr_store_server *s, int status, lr_store_value *v)
{
    for (lr_client *c = s->members.first, *next; c != NULL; c = next) {
        next = c->next;
        if (c->wait_key != NULL)
            wake(s, c, status, v);
    }
}

/* ---- failure ----------------------------------------------------------------------------------------------------- */
static void fail_job(lr_store_server *s, const char *why, size_t size)
{
    if (s->failed)
        return; /* the first reason counts */
    s->failed = true;
    s->failure->size = (uint32_t)size;
    memcpy(s->failure->bytes, why, size);
    wake_all(s, LR_EPEER, s->failure);
}

void lr_members_dismiss(lr_store_server *s)
{
    static const char why[] = "the group was started again; this process belongs to the one before";
    lr_store_value *v = lr_store_value_new(why, sizeof why - 1);
    wake_all(s, LR_EPEER, v);
    lr_store_value_drop(v);
    while (s->members.first != NULL)
        lr_client_leave(s, s->members.first);
}

/* ---- joining ----------------------------------------------------------------------------------------------------- */
static void peer_address(const lr_client *c, char *out)
{
    struct sockaddr_storage a = {0};
    socklen_t size = sizeof a;
    if (getpeername(c->fd, (struct sockaddr *)&a, &size) != 0)
        size = 0;
    lr_store_address((struct sockaddr *)&a, size, false, out, LR_STORE_ADDRESS);
}

/* In what does a client that knows the secret differ from this job? false: in nothing. */
static bool differs(lr_store_server *s, const lr_client *c, const lr_store_hello *h, char *why)
{
    char address[LR_STORE_ADDRESS], who[LR_STORE_ADDRESS + 32];
    peer_address(c, address);
    if (h->rank == LR_STORE_OBSERVER)
        snprintf(who, sizeof who, "a launcher at %s", address);
    else
        snprintf(who, sizeof who, "rank %d at %s", h->rank, address);
    if (strcmp(h->version, lr_version()) != 0)
        return snprintf(why, LR_STORE_TEXT, "%s runs lorarun %s, this job runs %s; install one version on all machines",
                        who, h->version, lr_version()) > 0;
    if (h->world_size != s->world_size)
        return snprintf(why, LR_STORE_TEXT,
                        "%s expects %d %s, this job has %d; start every machine with the same settings", who,
                        h->world_size, h->world_size == 1 ? "rank" : "ranks", s->world_size) > 0;
    if (h->generation != s->generation)
        return snprintf(why, LR_STORE_TEXT,
                        "%s is of generation %d, this job is in generation %d; restart it on all machines", who,
                        h->generation, s->generation) > 0;
    if (h->rank < LR_STORE_OBSERVER || h->rank >= s->world_size)
        return snprintf(why, LR_STORE_TEXT, "%s is not one of this job's ranks, which are 0 to %d", who,
                        s->world_size - 1) > 0;
    if (h->rank == LR_STORE_OBSERVER || s->ranks[h->rank] == NULL)
        return false;
    if (lr_client_has_left(s->ranks[h->rank])) { /* it came back before this server noticed that it was gone */
        lr_client_drop(s, s->ranks[h->rank]);
        return false;
    }
    char other[LR_STORE_ADDRESS];
    peer_address(s->ranks[h->rank], other);
    return snprintf(why, LR_STORE_TEXT,
                    "two processes are rank %d, one at %s and one at %s; give each a rank of its own", h->rank, other,
                    address) > 0;
}

/* May it join? LR_OK, or the status for its verdict, and why. */
static int judge(lr_store_server *s, const lr_client *c, const lr_store_hello *h, char *why)
{
    if (h->generation < s->generation) {
        snprintf(why, LR_STORE_TEXT, "the group was started again (generation %d); this process is of generation %d",
                 s->generation, h->generation);
        return LR_EREFUSED;
    }
    if (s->failed) {
        snprintf(why, LR_STORE_TEXT, "%.*s", (int)s->failure->size, s->failure->bytes);
        return LR_EPEER;
    }
    if (!differs(s, c, h, why))
        return LR_OK;
    fail_job(s, why, strlen(why));
    return LR_EREFUSED;
}

void lr_client_hello(lr_store_server *s, lr_client *c)
{
    lr_store_hello h;
    char why[LR_STORE_TEXT + 1] = "the secret differs";
    const bool proven = lr_store_hello_unpack(c->head, &h, c->greeting, s->secret);
    for (char *p = h.version; proven && *p; p++)
        if (!isgraph((unsigned char)*p))
            *p = '?';
    const int status = proven ? judge(s, c, &h, why) : LR_EREFUSED;
    lr_store_value *text = status != LR_OK ? lr_store_value_new(why, strlen(why)) : NULL;
    lr_store_verdict_pack(c->out, status, why, text != NULL ? text->size : 0, c->greeting, c->head,
                          proven ? s->secret : NULL);
    if (status == LR_OK) {
        c->stage = LR_CLIENT_JOINED;
        c->rank = h.rank;
        if (c->rank != LR_STORE_OBSERVER)
            s->ranks[c->rank] = c;
        lr_clients_move(&s->members, c);
        lr_client_set_deadline(s, c, INFINITY);
    }
    lr_client_send(s, c, LR_STORE_VERDICT, text);
    lr_store_value_drop(text);
    if (status != LR_OK)
        lr_client_leave(s, c);
}

/* ---- requests ---------------------------------------------------------------------------------------------------- */
static void set(lr_store_server *s, lr_client *c, const lr_store_request *r)
{
    lr_store_value *v = lr_store_value_new(c->body + r->key_size, r->value_size);
    const int status = v != NULL ? lr_store_table_set(s->table, c->body, r->key_size, v) : LR_ENOMEM;
    if (status == LR_OK) {
        reply(s, c, r->sequence, LR_OK, 0, NULL);
        wake_key(s, c->body, r->key_size, v);
    } else {
        reply_error(s, c, r->sequence, status);
    }
    lr_store_value_drop(v);
}

static void get(lr_store_server *s, lr_client *c, const lr_store_request *r)
{
    lr_store_value *v = lr_store_table_get(s->table, c->body, r->key_size);
    if (v != NULL) {
        reply(s, c, r->sequence, LR_OK, 0, v);
    } else if (r->number == 0) {
        reply(s, c, r->sequence, LR_ETIMEOUT, 0, NULL);
    } else {
        c->wait_key = c->body; /* the body of a get is the key alone */
        c->wait_key_size = r->key_size;
        c->wait_sequence = r->sequence;
        c->body = NULL;
        c->body_cap = 0;
        lr_client_set_deadline(s, c, lr_time() + (double)r->number / 1000);
    }
}

static void add(lr_store_server *s, lr_client *c, const lr_store_request *r)
{
    int64_t sum;
    const int status = lr_store_table_add(s->table, c->body, r->key_size, r->number, &sum);
    if (status != LR_OK) {
        reply_error(s, c, r->sequence, status);
        return;
    }
    reply(s, c, r->sequence, LR_OK, sum, NULL);
    wake_key(s, c->body, r->key_size, lr_store_table_get(s->table, c->body, r->key_size));
}

static void fail(lr_store_server *s, lr_client *c, const lr_store_request *r)
{
    static const char unknown[] = "a member failed, and there was no memory for its reason";
    fail_job(s, c->skip ? unknown : c->body, c->skip ? sizeof unknown - 1 : r->value_size);
    reply(s, c, r->sequence, LR_OK, 0, NULL);
}

void lr_client_request(lr_store_server *s, lr_client *c)
{
    const lr_store_request *r = &c->request;
    lr_client_end_wait(s, c);
    if (r->op == LR_STORE_FAIL) {
        fail(s, c, r);
    } else if (s->failed) {
        reply(s, c, r->sequence, LR_EPEER, 0, s->failure);
    } else if (c->skip) {
        lr_fail(LR_ENOMEM, "the store has no memory for a value of %u bytes", r->value_size);
        reply_error(s, c, r->sequence, LR_ENOMEM);
    } else if (r->op == LR_STORE_SET) {
        set(s, c, r);
    } else if (r->op == LR_STORE_GET) {
        get(s, c, r);
    } else {
        add(s, c, r);
    }
}

void lr_client_expire(lr_store_server *s, lr_client *c)
{
    if (c->stage == LR_CLIENT_JOINED)
        wake(s, c, LR_ETIMEOUT, NULL);
    else
        lr_client_drop(s, c);
}
