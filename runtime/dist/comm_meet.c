/* comm_meet.c: how the ranks of a job find and connect to each other.
 *
 * Each rank listens for every peer, publishes its addresses in the store, and connects when all have published theirs. Gloo
 * takes the first to connect for the peer, but a port scanner, or any other program, may be first. So the ranks prove to each
 * other over each connection that they have read the store, and then report in the store how it went. If any of them failed, all
 * build the mesh again, at new ports and under new keys, a few times.
 *
 * Invariants
 *   - All ranks get the same verdict about an attempt, because each reports before there is one.
 *   - A rank that fails an attempt wakes the peers that may wait for it before it reports. So an attempt ends within
 *     milliseconds, or at its limit if a stranger holds a connection and sends nothing. */
#define _GNU_SOURCE
#include "dist/comm.h"
#include <math.h>
#include <netdb.h>
#include <sodium.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

enum {
    ATTEMPTS = 5,
    FIRST_LIMIT = 10 /* seconds of the first attempt; doubled for each further one */,
    PROOF = 16 /* bytes */
};

/* What a rank knows of each peer in an attempt. */
typedef struct invitation {
    uint8_t proof[PROOF]; /* proves to the peer that this rank is no stranger */
    int32_t size;         /* of the address */
    char address[LR_MESH_ADDRESS];
} invitation;

/* What a rank publishes: its proof, then for every peer, in rank order, the size of an address and the address. */
enum { ENTRY = sizeof(int32_t) + LR_MESH_ADDRESS };

/* The address of this machine from which `host` is reached: the one that the kernel would use for a datagram to it. The
 * machine's own name often gives an address that no other machine can reach. */
static int local_address(const char *host, char *out, size_t cap)
{
    const struct addrinfo hints = {.ai_socktype = SOCK_DGRAM};
    struct addrinfo *list = NULL;
    const int code = getaddrinfo(host, "9", &hints, &list);
    if (code != 0)
        return lr_fail(LR_EIO, "cannot find the address of '%s': %s", host, gai_strerror(code));
    int status = lr_fail(LR_EIO, "'%s' has no address", host);
    for (const struct addrinfo *a = list; a != NULL && status != LR_OK; a = a->ai_next) {
        struct sockaddr_storage own;
        socklen_t size = sizeof own;
        const int fd = socket(a->ai_family, SOCK_DGRAM | SOCK_CLOEXEC, 0);
        if (fd < 0 || connect(fd, a->ai_addr, a->ai_addrlen) != 0 ||
            getsockname(fd, (struct sockaddr *)&own, &size) != 0 ||
            getnameinfo((struct sockaddr *)&own, size, out, (socklen_t)cap, NULL, 0, NI_NUMERICHOST) != 0)
            status = lr_fail_errno("this machine has no way to '%s'", host);
        else
            status = LR_OK;
        if (fd >= 0)
            (void)close(fd);
    }
    freeaddrinfo(list);
    return status;
}

/* A failure of the mesh as a status: LR_EPEER is worth another attempt. */
static int mesh_failure(int mesh_status, const char *what, const char *why)
{
    if (mesh_status == LR_MESH_NO_MEMORY)
        return lr_fail(LR_ENOMEM, "%s: out of memory", what);
    return lr_fail(LR_EPEER, "%s: %s", what, why);
}

static void name_key(const lr_comm *c, int attempt, const char *what, int rank, char key[128])
{
    if (rank >= 0)
        (void)snprintf(key, 128, "gloo/%s/%d/%s/%d", c->group, attempt, what, rank);
    else
        (void)snprintf(key, 128, "gloo/%s/%d/%s", c->group, attempt, what);
}

static int publish(lr_comm *c, lr_store *store, int attempt, const uint8_t proof[PROOF])
{
    const size_t size = PROOF + (size_t)c->world_size * ENTRY;
    char key[128], *value = lr_calloc(1, size);
    if (value == NULL)
        return LR_ENOMEM;
    memcpy(value, proof, PROOF);
    for (int peer = 0; peer < c->world_size; peer++) {
        if (peer == c->rank)
            continue;
        char *at = value + PROOF + (size_t)peer * ENTRY;
        const int32_t length = c->calls->address(c->mesh, peer, at + sizeof length);
        memcpy(at, &length, sizeof length);
    }
    name_key(c, attempt, "at", c->rank, key);
    const int status = lr_store_set(store, key, value, (int64_t)size);
    lr_free(value);
    return status;
}

/* What `peer` published for this rank. */
static int read_invitation(lr_comm *c, lr_store *store, int attempt, int peer, double deadline, invitation *out)
{
    char key[128], *value = NULL;
    int64_t size = 0;
    name_key(c, attempt, "at", peer, key);
    int status = lr_store_get(store, key, lr_time() < deadline ? deadline - lr_time() : 0, &value, &size);
    if (status == LR_ETIMEOUT)
        return lr_fail(LR_ETIMEOUT, "rank %d waited %.1f s for rank %d to join", c->rank, c->timeout, peer);
    if (status != LR_OK)
        return status;
    if (size == (int64_t)(PROOF + (size_t)c->world_size * ENTRY)) {
        const char *at = value + PROOF + (size_t)c->rank * ENTRY;
        memcpy(out->proof, value, PROOF);
        memcpy(&out->size, at, sizeof out->size);
        memcpy(out->address, at + sizeof out->size, LR_MESH_ADDRESS);
    }
    if (out->size < 1 || out->size > LR_MESH_ADDRESS)
        status = lr_fail(LR_EINTERNAL, "rank %d published an address that cannot be read", peer);
    lr_free(value);
    return status;
}

static int connect_to(lr_comm *c, int peer, const invitation *to)
{
    char what[80], why[LR_MESH_WHY] = "";
    const int result = c->calls->connect(c->mesh, peer, to->address, to->size, why);
    (void)snprintf(what, sizeof what, "rank %d cannot connect to rank %d", c->rank, peer);
    return result == LR_MESH_OK ? LR_OK : mesh_failure(result, what, why);
}

/* Checks that the other end of each connection has read the store. */
static int prove(lr_comm *c, const invitation *of, const uint8_t own[PROOF], double limit)
{
    const size_t n = (size_t)c->world_size;
    char why[LR_MESH_WHY] = "";
    uint8_t *out = lr_calloc(2 * n, PROOF), *in = out != NULL ? out + n * PROOF : NULL;
    if (out == NULL)
        return LR_ENOMEM;
    lr_mesh_transfer t = {.out = out,
                          .out_size = (int64_t)(n * PROOF),
                          .sends = c->parts,
                          .in = in,
                          .in_size = (int64_t)(n * PROOF),
                          .receives = c->parts,
                          .send_count = c->world_size - 1,
                          .receive_count = c->world_size - 1};
    int used = 0;
    for (int peer = 0; peer < c->world_size; peer++) {
        if (peer == c->rank)
            continue;
        memcpy(out + (size_t)peer * PROOF, of[peer].proof, PROOF);
        c->parts[used++] = (lr_mesh_part){peer, (int64_t)peer * PROOF, PROOF};
    }
    const int result = c->calls->transfer(c->mesh, 0, &t, limit, why);
    int status = LR_OK;
    if (result != LR_MESH_OK)
        status = mesh_failure(result, "a connection between the ranks failed while they met",
                              result == LR_MESH_TIMEOUT ? "the program at its other end sends nothing" : why);
    for (int peer = 0; peer < c->world_size && status == LR_OK; peer++)
        if (peer != c->rank && sodium_memcmp(in + (size_t)peer * PROOF, own, PROOF) != 0)
            status = lr_fail(LR_EPEER, "another program connected in place of rank %d", peer);
    lr_free(out);
    return status;
}

/* Seconds that an attempt may take once all ranks are there: a share of the timeout, so that all attempts fit into it. */
static double attempt_limit(const lr_comm *c, int attempt, double deadline)
{
    const double left = deadline - lr_time(), most = FIRST_LIMIT << attempt;
    const double share = fmin(fmax(c->timeout / (double)(1 << (ATTEMPTS - attempt)), 1), most);
    return fmax(attempt + 1 == ATTEMPTS ? left : fmin(left, share), 0);
}

/* Connect to all peers and exchange proofs. LR_EPEER: another attempt may succeed. */
static int attempt_once(lr_comm *c, lr_store *store, int attempt, const char *address, const char *interface,
                        double deadline, invitation *peers)
{
    char why[LR_MESH_WHY] = "";
    uint8_t proof[PROOF];
    const double limit = attempt_limit(c, attempt, deadline);
    randombytes_buf(proof, sizeof proof);
    const int result = c->calls->open(&c->mesh, c->rank, c->world_size, address, interface, limit, why);
    if (result != LR_MESH_OK) {
        char what[NI_MAXHOST + 40];
        (void)snprintf(what, sizeof what, "cannot listen on %s", interface != NULL ? interface : address);
        const int status = mesh_failure(result, what, why);
        return status == LR_EPEER ? LR_EIO : status;
    }
    int status = publish(c, store, attempt, proof);
    for (int peer = 0; peer < c->world_size && status == LR_OK; peer++)
        if (peer != c->rank)
            status = read_invitation(c, store, attempt, peer, deadline, &peers[peer]);
    for (int peer = 0; peer < c->world_size && status == LR_OK; peer++)
        if (peer != c->rank)
            status = connect_to(c, peer, &peers[peer]);
    return status == LR_OK ? prove(c, peers, proof, limit) : status;
}

/* Tell the others how the attempt went here, and learn the verdict: LR_OK, or LR_EPEER and whether to try again. The numbers
 * of ranks that succeeded, failed and gave up are digits of one sum; the rank that completes it writes the verdict. */
static int settle(lr_comm *c, lr_store *store, int attempt, int own, double deadline, bool *again)
{
    enum { FAILED_SHIFT = 20, GONE_SHIFT = 40, MASK = (1 << 20) - 1 };
    char sum_key[128], key[128], *value = NULL;
    const int64_t report = own == LR_OK ? 1 : (int64_t)1 << (own == LR_EPEER ? FAILED_SHIFT : GONE_SHIFT);
    int64_t sum = 0, size = 0;
    name_key(c, attempt, "sum", -1, sum_key);
    name_key(c, attempt, "verdict", -1, key);
    *again = false;
    int status = lr_store_add(store, sum_key, report, &sum);
    const int64_t failed = sum >> FAILED_SHIFT & MASK, gone = sum >> GONE_SHIFT;
    if (status == LR_OK && (sum & MASK) + failed + gone == c->world_size)
        status = lr_store_set(store, key,
                              gone > 0     ? "gone"
                              : failed > 0 ? "again"
                                           : "well",
                              gone > 0 || failed == 0 ? 4 : 5);
    if (status != LR_OK || (own != LR_OK && own != LR_EPEER)) /* a rank that gave up does not wait */
        return status == LR_OK ? own : status;
    status = lr_store_get(store, key, lr_time() < deadline ? deadline - lr_time() : 0, &value, &size);
    if (status == LR_ETIMEOUT)
        return lr_fail(LR_ETIMEOUT, "rank %d waited %.1f s for all ranks to be connected", c->rank, c->timeout);
    if (status != LR_OK)
        return status;
    *again = *value == 'a';
    if (*value != 'w')
        status = lr_fail(LR_EPEER, *again ? "a connection between other ranks failed while the ranks met"
                                          : "another rank failed while the ranks met");
    lr_free(value);
    return status;
}

int lr_comm_meet(lr_comm *c, lr_store *store, const char *host)
{
    char address[NI_MAXHOST];
    const char *interface = getenv("GLOO_SOCKET_IFNAME");
    if (interface != NULL && *interface == '\0')
        interface = NULL;
    const double deadline = lr_time() + c->timeout;
    int status = lr_comm_load(&c->calls);
    if (status == LR_OK)
        status = local_address(host, address, sizeof address);
    if (status != LR_OK)
        return status;
    bool again = true;
    for (int attempt = 0; attempt < ATTEMPTS && again; attempt++) {
        invitation *peers = lr_calloc((size_t)c->world_size, sizeof *peers);
        if (peers == NULL)
            return LR_ENOMEM;
        char reason[512];
        const int own = attempt_once(c, store, attempt, address, interface, deadline, peers);
        if (own != LR_OK) {
            (void)snprintf(reason, sizeof reason, "%s", lr_last_error());
            lr_comm_close_mesh(c);
            for (int peer = 0; peer < c->world_size; peer++)
                if (peers[peer].size > 0)
                    c->calls->rouse(peers[peer].address, peers[peer].size);
        }
        lr_free(peers);
        status = settle(c, store, attempt, own, deadline, &again);
        if (status != LR_OK)
            lr_comm_close_mesh(c);
        if (own != LR_OK && own != LR_ENOMEM)
            status = lr_fail(own, "%s", reason);
        else if (own != LR_OK)
            status = own;
    }
    if (status != LR_EPEER || !again)
        return status;
    char reason[512];
    (void)snprintf(reason, sizeof reason, "%s", lr_last_error());
    return lr_fail(LR_EPEER,
                   "%s (tried %d times; another program may be connecting to the ports of the ranks while they meet)",
                   reason, ATTEMPTS);
}
