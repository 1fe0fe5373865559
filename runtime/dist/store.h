/* store.h: what the two sides of a job's store say to each other, and the parts that they share.
 *
 * A connection
 *     server  greeting   magic, nonce client  hello      magic, version, rank, world size, generation, nonce, proof server
 *     verdict    status, proof, text then    requests of the client; each gets one reply, with its sequence number
 * Everything is little endian, and nothing is longer than the limits below. Two sides find out by greeting, hello and verdict
 * that their versions differ, so these keep their layout in every version of lorarun.
 *
 * A proof is HMAC-SHA256, keyed with the secret, over the name of its side and all that was said before it, including both
 * nonces. So the secret is never sent, no proof can be used twice or sent back to the side it came from, and what a hello or a
 * verdict says cannot be changed on the way. The client proves first, so a port scanner learns nothing that depends on the
 * secret. Without a secret the key is empty. What follows the verdict is neither signed nor encrypted: a job trusts the network
 * between its machines, as its collectives must, but not everybody who can reach its port.
 *
 * Memory for clients without proof is bounded: so is their number, and each has one buffer of fixed size. */
#ifndef LR_STORE_H
#define LR_STORE_H

#include "core/core.h"
#include <sys/socket.h>
#include <sys/uio.h>

enum {
    LR_STORE_KEY = 1 << 10,    /* longest key, in bytes */
    LR_STORE_VALUE = 16 << 20, /* largest value */
    LR_STORE_TEXT = 1 << 10,   /* longest text of a failure or refusal */
    LR_STORE_RANKS = 1 << 16,  /* most ranks of a job */
    LR_STORE_HANDSHAKE = 10,   /* seconds a client has for its hello, and a refused one to close */
    LR_STORE_NONCE = 32,       /* bytes */
    LR_STORE_PROOF = 32,       /* bytes: one SHA-256 */
    LR_STORE_VERSION = 16,     /* bytes of "0.1.0", NUL-padded */
    /* bytes of frames, or of the fixed part of frames that vary */
    LR_STORE_GREETING = 8 + LR_STORE_NONCE,
    LR_STORE_HELLO = 8 + LR_STORE_VERSION + 3 * 4 + 4 + LR_STORE_NONCE + LR_STORE_PROOF,
    LR_STORE_VERDICT = 2 * 4 + LR_STORE_PROOF,
    LR_STORE_REQUEST = 4 * 4 + 8,
    LR_STORE_REPLY = 2 * 4 + 8 + 2 * 4,
    LR_STORE_ADDRESS = 80 /* room for "[fe80::1%eth0]:29500" */
};

typedef struct lr_store_hello {
    char version[LR_STORE_VERSION + 1];
    int32_t rank, world_size, generation;
} lr_store_hello;

typedef enum lr_store_op { LR_STORE_SET = 1, LR_STORE_GET = 2, LR_STORE_ADD = 3, LR_STORE_FAIL = 4 } lr_store_op;

typedef struct lr_store_request {
    uint32_t op, sequence;
    uint32_t key_size, value_size; /* of the bytes that follow; FAIL has its text as the value */
    int64_t number;                /* GET: milliseconds to wait; ADD: the amount */
} lr_store_request;

typedef struct lr_store_reply {
    uint32_t sequence; /* of the request it answers */
    int32_t status;    /* an lr_status */
    int64_t number;    /* ADD: the sum */
    uint32_t size;     /* of the bytes that follow: a value, or the text of an error */
} lr_store_reply;

/* ---- frames (store_wire.c) --------------------------------------------------------------------------------------- */
void lr_store_greeting_pack(uint8_t *out); /* with a new nonce */
bool lr_store_greeting_valid(const uint8_t *in);

/* A hello answers a greeting, with a new nonce and the proof. */
void lr_store_hello_pack(uint8_t *out, const lr_store_hello *hello, const uint8_t *greeting, const char *secret);
/* false: it is no hello of lorarun, or its sender does not know the secret */
bool lr_store_hello_unpack(const uint8_t *in, lr_store_hello *hello, const uint8_t *greeting, const char *secret);

/* The proof covers status and text too. secret NULL: no proof, for a client that gave none and could use it for guessing. */
void lr_store_verdict_pack(uint8_t *out, int status, const char *text, size_t size, const uint8_t *greeting,
                           const uint8_t *hello, const char *secret);
void lr_store_verdict_unpack(const uint8_t *in, int32_t *status, uint32_t *size);
bool lr_store_verdict_proven(const uint8_t *in, const char *text, const uint8_t *greeting, const uint8_t *hello,
                             const char *secret);

/* The unpack functions return whether the frame is well-formed and within the limits. */
void lr_store_request_pack(uint8_t *out, const lr_store_request *r);
bool lr_store_request_unpack(const uint8_t *in, lr_store_request *r);
void lr_store_reply_pack(uint8_t *out, const lr_store_reply *r);
bool lr_store_reply_unpack(const uint8_t *in, lr_store_reply *r);

/* ---- secrets and sockets (store_wire.c) -------------------------------------------------------------------------- */
int lr_store_crypto(void); /* call it before any of the above; any number of times, from any thread */
char *lr_store_secret_copy(const char *secret); /* "" for NULL; wiped when freed */
void lr_store_secret_free(char *secret);
void lr_store_socket_tune(int fd); /* small frames are sent at once, dead peers are noticed */
/* "10.0.0.2" or "::1"; with the port "10.0.0.2:29500", "[::1]:29500". */
void lr_store_address(const struct sockaddr *a, socklen_t size, bool port, char *out, size_t cap);
/* Send as much of the n <= 3 parts as the socket takes now, starting at byte *sent of them all; advances *sent. -1: the
 * connection is gone (errno). */
int lr_store_send(int fd, const struct iovec *parts, int n, size_t *sent);
/* Receive what is there now, at most size bytes: how many came; 0: none yet; -1: the connection is gone. */
ssize_t lr_store_receive(int fd, void *out, size_t size);

/* ---- values by key (store_table.c) ------------------------------------------------------------------------------- */
/* Bytes with a count of holders: a value that many members wait for is kept once, however slowly they read. */
typedef struct lr_store_value {
    int holders;
    uint32_t size;
    char bytes[];
} lr_store_value;
/* With one holder. bytes NULL: left undefined. NULL: out of memory. */
lr_store_value *lr_store_value_new(const void *bytes, size_t size);
lr_store_value *lr_store_value_hold(lr_store_value *v);
void lr_store_value_drop(lr_store_value *v); /* accepts NULL */

typedef struct lr_store_table lr_store_table;
lr_store_table *lr_store_table_new(void);
lr_store_value *lr_store_table_get(const lr_store_table *t, const char *key, size_t size);  /* not held; NULL: none */
int lr_store_table_set(lr_store_table *t, const char *key, size_t size, lr_store_value *v); /* holds v itself */
/* Add to the number that a key holds as decimal text. */
int lr_store_table_add(lr_store_table *t, const char *key, size_t size, int64_t amount, int64_t *sum);
void lr_store_table_free(lr_store_table *t);

#endif
