/* store_server.h: the server of a store, in three files. store_server.c is on top: it has the thread, the sockets and the public
 * functions. store_members.c knows what clients may do and what their requests mean. store_connections.c keeps and ends their
 * connections and sends to them. Everything here belongs to the server's thread. */
#ifndef LR_STORE_SERVER_H
#define LR_STORE_SERVER_H

#include "dist/store.h"

typedef enum lr_client_stage {
    LR_CLIENT_GREETED, /* the server waits for its hello */
    LR_CLIENT_JOINED,  /* a member of the job */
    LR_CLIENT_LEAVING  /* its last message is on its way; then the connection ends */
} lr_client_stage;

typedef struct lr_clients {
    struct lr_client *first, *last; /* oldest first */
    int count;
} lr_clients;

/* The other end of one connection. It is always in one of the server's lists. */
typedef struct lr_client {
    struct lr_client *previous, *next;
    lr_clients *list;
    int fd; /* -1: dropped */
    lr_client_stage stage;
    uint32_t watched; /* the events that epoll watches */
    double deadline;  /* of a get that waits, or for a client that is no member; else INFINITY */
    int32_t rank;
    uint8_t greeting[LR_STORE_GREETING];
    /* the frame that is being received */
    uint8_t head[LR_STORE_HELLO];
    size_t head_used, body_used, body_cap;
    lr_store_request request;
    char *body; /* key, then value */
    bool skip;  /* there was no memory for the body */
    /* the frame that is being sent; meanwhile nothing is read */
    uint8_t out[LR_STORE_VERDICT];
    size_t out_size, out_sent; /* out_size 0: none */
    lr_store_value *out_value;
    /* the get that waits for its key, if any */
    char *wait_key;
    uint32_t wait_key_size, wait_sequence;
} lr_client;

/* An order to the server's thread. */
typedef struct lr_store_order {
    bool stop; /* false: start over with these */
    int generation;
    lr_store_table *table;
    lr_store_value *failure;
} lr_store_order;

struct lr_store_server {
    int listener, epoll, wake; /* wake: an eventfd, readable when there is an order */
    int port, world_size, generation;
    char *secret;
    int most_pending;
    lr_clients pending, members, dropped; /* not joined, or leaving; joined; freed at the end of the round */
    lr_client **ranks;                    /* [world_size]: the client that is this rank, or NULL */
    lr_store_table *table;
    lr_store_value *failure; /* allocated beforehand: a job can also fail when memory runs out */
    bool failed;
    double next_deadline; /* at or before the earliest deadline */
    double resume;        /* when accepting goes on after open files ran out; else INFINITY */
    pthread_t thread;
    pthread_mutex_t mutex;
    pthread_cond_t done;
    const lr_store_order *order; /* under mutex: one at a time, or NULL */
};

/* ---- store_connections.c ------------------------------------------------------------------------------------------- */
void lr_clients_move(lr_clients *to, lr_client *c); /* to the end of that list */
void lr_clients_free(lr_clients *list);             /* all of them; closes what is open */
void lr_client_set_deadline(lr_store_server *s, lr_client *c, double deadline);
void lr_client_end_wait(lr_store_server *s, lr_client *c); /* its get, if it has one, waits no longer */
/* Close the connection, now. The client itself lives until the end of the round. */
void lr_client_drop(lr_store_server *s, lr_client *c);
/* Send out[0..size), then value (NULL: nothing). Holds the value itself until it is sent. */
void lr_client_send(lr_store_server *s, lr_client *c, size_t size, lr_store_value *value);
void lr_client_flush(lr_store_server *s, lr_client *c); /* send what the socket takes now of the frame */
/* End the connection once the client has read what was sent, or its time is over. It is no longer a member. */
void lr_client_leave(lr_store_server *s, lr_client *c);
bool lr_client_has_left(const lr_client *c); /* has the other end closed, even if the server has not read that yet? */

/* ---- store_members.c ------------------------------------------------------------------------------------------------- */
void lr_client_hello(lr_store_server *s, lr_client *c);   /* its hello is in head */
void lr_client_request(lr_store_server *s, lr_client *c); /* its request is in request and body */
void lr_client_expire(lr_store_server *s, lr_client *c);  /* its deadline has come */
void lr_members_dismiss(lr_store_server *s);              /* all of them: the group starts over */

#endif
