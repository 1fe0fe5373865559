/* comm_mesh.h: the connections between the ranks of a job, as the collectives use them: who sends which bytes to whom.
 *
 * The mesh is Gloo's TCP transport. It is in a module of its own, lorarun_gloo.so (comm_gloo.cc), which comm_link.c opens when
 * the first job of several ranks is joined: Gloo and its libraries would make every start of the program a millisecond slower.
 * The two sides share this header and nothing else. The module calls nothing of lorarun's, so it can be opened from any program.
 *
 * After a call has failed, or `broken` returned 1, only `lost` and `close` may be called. */
#ifndef LR_COMM_MESH_H
#define LR_COMM_MESH_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum {
    LR_MESH_ABI = 3,       /* add one with every change of this header */
    LR_MESH_ADDRESS = 256, /* room for an address */
    LR_MESH_WHY = 512      /* room for the reason of a failure */
};

typedef enum lr_mesh_status {
    LR_MESH_OK = 0,
    LR_MESH_ABORTED = 1, /* by `abort` */
    LR_MESH_TIMEOUT = 2,
    LR_MESH_FAILED = 3, /* a connection broke */
    LR_MESH_NO_MEMORY = 4
} lr_mesh_status;

/* `size` bytes (>= 1) at `offset` of a buffer, to or from a peer. */
typedef struct lr_mesh_part {
    int32_t peer;
    int64_t offset, size;
} lr_mesh_part;

/* Sends and receives that happen at the same time. Messages from one rank to another arrive in the order sent. A message may be
 * smaller than the part that receives it, but not larger: Gloo would end the process. */
typedef struct lr_mesh_transfer {
    const void *out;
    int64_t out_size;
    const lr_mesh_part *sends;
    void *in;
    int64_t in_size;
    const lr_mesh_part *receives;
    int32_t send_count, receive_count;
} lr_mesh_transfer;

typedef struct lr_mesh lr_mesh;

typedef struct lr_mesh_calls {
    int abi;
    /* Listen for every peer; the first to connect is taken for the peer. address: the one of this machine to listen on;
     * interface: instead of it, the name of a network interface, or NULL. timeout (seconds) is for each connect, at least 5 ms.
     * why: LR_MESH_WHY bytes, set on failure. */
    int (*open)(lr_mesh **out, int rank, int world_size, const char *address, const char *interface, double timeout,
                char *why);
    /* Where `peer` finds this rank: the bytes that it passes to connect. Returns their number, at most LR_MESH_ADDRESS. */
    int (*address)(const lr_mesh *mesh, int peer, void *bytes);
    int (*connect)(lr_mesh *mesh, int peer, const void *bytes, int size, char *why);
    /* End the wait of a peer at that address: a peer that waits there for a connection fails at once. */
    void (*rouse)(const void *bytes, int size);
    int (*transfer)(lr_mesh *mesh, uint64_t tag, const lr_mesh_transfer *t, double timeout, char *why);
    /* 1: the connection to some peer has closed, also if nothing is being sent. For callers that wait for their peers in another
     * way. Does not wait. */
    int (*broken)(lr_mesh *mesh);
    /* lost[peer] = 1: the connection to that peer is closed. */
    void (*lost)(lr_mesh *mesh, uint8_t *lost);
    /* End the transfer that another thread is in, and all later ones. Any thread. */
    void (*abort)(lr_mesh *mesh);
    void (*close)(lr_mesh *mesh);
} lr_mesh_calls;

/* The one symbol of the module. */
#define LR_MESH_SYMBOL "lr_mesh_calls_v1"
#define LR_MESH_MODULE "lorarun_gloo.so"

#ifdef __cplusplus
}
#endif
#endif
