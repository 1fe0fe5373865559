/* store_wire.c: the frames of store.h as bytes, proofs of the secret, and the use of sockets on both sides. */
#define _GNU_SOURCE
#include "dist/store.h"
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sodium.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

_Static_assert(LR_STORE_PROOF == crypto_auth_hmacsha256_BYTES, "a proof is one HMAC-SHA256");

static const uint8_t MAGIC[8] = {'l', 'r', 's', 't', 'o', 'r', 'e', '\n'};
enum { HELLO_SIGNED = LR_STORE_HELLO - LR_STORE_PROOF, VERDICT_SIGNED = LR_STORE_VERDICT - LR_STORE_PROOF };

/* ---- numbers ----------------------------------------------------------------------------------------------------- */
static uint8_t *put32(uint8_t *out, uint32_t v)
{
    for (int i = 0; i < 4; i++)
        out[i] = (uint8_t)(v >> 8 * i);
    return out + 4;
}

static uint8_t *put64(uint8_t *out, uint64_t v)
{
    return put32(put32(out, (uint32_t)v), (uint32_t)(v >> 32));
}

static uint32_t get32(const uint8_t *in)
{
    return (uint32_t)in[0] | (uint32_t)in[1] << 8 | (uint32_t)in[2] << 16 | (uint32_t)in[3] << 24;
}

static uint64_t get64(const uint8_t *in)
{
    return (uint64_t)get32(in) | (uint64_t)get32(in + 4) << 32;
}

/* ---- proofs ------------------------------------------------------------------------------------------------------ */
static void prove(uint8_t *proof, const char *side, const uint8_t *greeting, const uint8_t *hello,
                  const uint8_t *verdict, const char *text, size_t size, const char *secret)
{
    crypto_auth_hmacsha256_state state;
    crypto_auth_hmacsha256_init(&state, (const unsigned char *)secret, strlen(secret));
    crypto_auth_hmacsha256_update(&state, (const unsigned char *)side, strlen(side) + 1);
    crypto_auth_hmacsha256_update(&state, greeting, LR_STORE_GREETING);
    crypto_auth_hmacsha256_update(&state, hello, HELLO_SIGNED);
    if (verdict != NULL) { /* it has the size of text, so text cannot be mistaken for what follows */
        crypto_auth_hmacsha256_update(&state, verdict, VERDICT_SIGNED);
        crypto_auth_hmacsha256_update(&state, (const unsigned char *)text, size);
    }
    crypto_auth_hmacsha256_final(&state, proof);
    sodium_memzero(&state, sizeof state);
}

static void prove_client(uint8_t *proof, const uint8_t *greeting, const uint8_t *hello, const char *secret)
{
    prove(proof, "lorarun store client", greeting, hello, NULL, NULL, 0, secret);
}

static void prove_server(uint8_t *proof, const uint8_t *greeting, const uint8_t *hello, const uint8_t *verdict,
                         const char *text, size_t size, const char *secret)
{
    prove(proof, "lorarun store server", greeting, hello, verdict, text, size, secret);
}

/* ---- greeting, hello, verdict ------------------------------------------------------------------------------------ */
void lr_store_greeting_pack(uint8_t *out)
{
    memcpy(out, MAGIC, sizeof MAGIC);
    randombytes_buf(out + sizeof MAGIC, LR_STORE_NONCE);
}

bool lr_store_greeting_valid(const uint8_t *in)
{
    return memcmp(in, MAGIC, sizeof MAGIC) == 0;
}

void lr_store_hello_pack(uint8_t *out, const lr_store_hello *hello, const uint8_t *greeting, const char *secret)
{
    memset(out, 0, LR_STORE_HELLO);
    memcpy(out, MAGIC, sizeof MAGIC);
    uint8_t *p = out + sizeof MAGIC;
    memcpy(p, hello->version, strnlen(hello->version, LR_STORE_VERSION));
    p = put32(p + LR_STORE_VERSION, (uint32_t)hello->rank);
    p = put32(p, (uint32_t)hello->world_size);
    p = put32(p, (uint32_t)hello->generation);
    p = put32(p, 0);
    randombytes_buf(p, LR_STORE_NONCE);
    prove_client(out + HELLO_SIGNED, greeting, out, secret);
}

bool lr_store_hello_unpack(const uint8_t *in, lr_store_hello *hello, const uint8_t *greeting, const char *secret)
{
    uint8_t proof[LR_STORE_PROOF];
    prove_client(proof, greeting, in, secret);
    if (sodium_memcmp(proof, in + HELLO_SIGNED, sizeof proof) != 0 || memcmp(in, MAGIC, sizeof MAGIC) != 0)
        return false;
    const uint8_t *p = in + sizeof MAGIC;
    memcpy(hello->version, p, LR_STORE_VERSION);
    hello->version[LR_STORE_VERSION] = 0;
    p += LR_STORE_VERSION;
    hello->rank = (int32_t)get32(p);
    hello->world_size = (int32_t)get32(p + 4);
    hello->generation = (int32_t)get32(p + 8);
    return true;
}

void lr_store_verdict_pack(uint8_t *out, int status, const char *text, size_t size, const uint8_t *greeting,
                           const uint8_t *hello, const char *secret)
{
    uint8_t *p = put32(put32(out, (uint32_t)status), (uint32_t)size);
    if (secret != NULL)
        prove_server(p, greeting, hello, out, text, size, secret);
    else
        memset(p, 0, LR_STORE_PROOF);
}

void lr_store_verdict_unpack(const uint8_t *in, int32_t *status, uint32_t *size)
{
    *status = (int32_t)get32(in);
    *size = get32(in + 4);
}

bool lr_store_verdict_proven(const uint8_t *in, const char *text, const uint8_t *greeting, const uint8_t *hello,
                             const char *secret)
{
    uint8_t proof[LR_STORE_PROOF];
    prove_server(proof, greeting, hello, in, text, get32(in + 4), secret);
    return sodium_memcmp(proof, in + VERDICT_SIGNED, sizeof proof) == 0;
}

/* ---- requests and replies ---------------------------------------------------------------------------------------- */
void lr_store_request_pack(uint8_t *out, const lr_store_request *r)
{
    uint8_t *p = put32(put32(out, r->op), r->sequence);
    put64(put32(put32(p, r->key_size), r->value_size), (uint64_t)r->number);
}

bool lr_store_request_unpack(const uint8_t *in, lr_store_request *r)
{
    *r = (lr_store_request){get32(in), get32(in + 4), get32(in + 8), get32(in + 12), (int64_t)get64(in + 16)};
    const bool key = r->key_size >= 1 && r->key_size <= LR_STORE_KEY;
    switch (r->op) {
    case LR_STORE_SET:
        return key && r->value_size <= LR_STORE_VALUE;
    case LR_STORE_GET:
        return key && r->value_size == 0 && r->number >= 0;
    case LR_STORE_ADD:
        return key && r->value_size == 0;
    case LR_STORE_FAIL:
        return r->key_size == 0 && r->value_size >= 1 && r->value_size <= LR_STORE_TEXT;
    default:
        return false;
    }
}

void lr_store_reply_pack(uint8_t *out, const lr_store_reply *r)
{
    uint8_t *p = put32(put32(out, r->sequence), (uint32_t)r->status);
    put32(put32(put64(p, (uint64_t)r->number), r->size), 0);
}

bool lr_store_reply_unpack(const uint8_t *in, lr_store_reply *r)
{
    *r = (lr_store_reply){get32(in), (int32_t)get32(in + 4), (int64_t)get64(in + 8), get32(in + 16)};
    return r->status <= 0 && r->status > LR_STATUS_LAST &&
           r->size <= (r->status == LR_OK ? LR_STORE_VALUE : LR_STORE_TEXT);
}

/* ---- secrets ----------------------------------------------------------------------------------------------------- */
int lr_store_crypto(void)
{
    return sodium_init() < 0 ? lr_fail(LR_EINTERNAL, "libsodium cannot be used: it finds no source of random numbers")
                             : LR_OK;
}

char *lr_store_secret_copy(const char *secret)
{
    return lr_strdup(secret != NULL ? secret : "");
}

void lr_store_secret_free(char *secret)
{
    if (secret != NULL)
        sodium_memzero(secret, strlen(secret));
    lr_free(secret);
}

int lr_secret_take(const char *variable, char **value)
{
    char *own = getenv(variable);
    *value = own != NULL ? lr_strdup(own) : NULL;
    if (own == NULL)
        return LR_OK;
    if (*value == NULL)
        return LR_ENOMEM;
    sodium_memzero(own, strlen(own)); /* other programs of this user can read it in /proc */
    (void)unsetenv(variable);
    return LR_OK;
}

/* ---- sockets ----------------------------------------------------------------------------------------------------- */
void lr_store_socket_tune(int fd)
{
    /* A peer whose machine is gone is noticed after half a minute of silence. If the system does not have one of these options, the
     * others still help. */
    static const struct {
        int level, name, value;
    } options[] = {{SOL_SOCKET, SO_KEEPALIVE, 1},
                   {IPPROTO_TCP, TCP_KEEPIDLE, 15},
                   {IPPROTO_TCP, TCP_KEEPINTVL, 5},
                   {IPPROTO_TCP, TCP_KEEPCNT, 3},
                   {IPPROTO_TCP, TCP_NODELAY, 1}};
    for (size_t i = 0; i < LR_COUNT_OF(options); i++)
        setsockopt(fd, options[i].level, options[i].name, &options[i].value, sizeof options[i].value);
}

void lr_store_address(const struct sockaddr *a, socklen_t size, bool port, char *out, size_t cap)
{
    char host[INET6_ADDRSTRLEN] = "?";
    int number = 0;
    if (a->sa_family == AF_INET && size >= sizeof(struct sockaddr_in)) {
        struct sockaddr_in v4;
        memcpy(&v4, a, sizeof v4);
        inet_ntop(AF_INET, &v4.sin_addr, host, sizeof host);
        number = ntohs(v4.sin_port);
    } else if (a->sa_family == AF_INET6 && size >= sizeof(struct sockaddr_in6)) {
        struct sockaddr_in6 v6;
        memcpy(&v6, a, sizeof v6);
        if (IN6_IS_ADDR_V4MAPPED(&v6.sin6_addr)) /* an IPv4 peer of a socket for both */
            inet_ntop(AF_INET, &v6.sin6_addr.s6_addr[12], host, sizeof host);
        else
            inet_ntop(AF_INET6, &v6.sin6_addr, host, sizeof host);
        number = ntohs(v6.sin6_port);
    }
    if (!port)
        snprintf(out, cap, "%s", host);
    else
        snprintf(out, cap, strchr(host, ':') != NULL ? "[%s]:%d" : "%s:%d", host, number);
}

int lr_store_send(int fd, const struct iovec *parts, int n, size_t *sent)
{
    for (;;) {
        struct iovec left[3];
        size_t skip = *sent, count = 0;
        for (int i = 0; i < n; i++) {
            if (skip < parts[i].iov_len)
                left[count++] = (struct iovec){(char *)parts[i].iov_base + skip, parts[i].iov_len - skip};
            skip -= skip < parts[i].iov_len ? skip : parts[i].iov_len;
        }
        if (count == 0)
            return 0;
        const struct msghdr message = {.msg_iov = left, .msg_iovlen = count};
        const ssize_t done = sendmsg(fd, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (done >= 0)
            *sent += (size_t)done;
        else if (errno == EAGAIN || errno == EWOULDBLOCK)
            return 0;
        else if (errno != EINTR)
            return -1;
    }
}

ssize_t lr_store_receive(int fd, void *out, size_t size)
{
    for (;;) {
        const ssize_t n = recv(fd, out, size, MSG_DONTWAIT);
        if (n > 0)
            return n;
        if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK))
            return 0;
        if (n == 0 || errno != EINTR)
            return -1;
    }
}
