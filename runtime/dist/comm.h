/* comm.h: the parts of the collectives: the agreement, the connections, the two data planes.
 *
 *   comm.c       the public functions: argument checks, the agreement, errors
 *   comm_meet.c  how the ranks find and connect to each other
 *   comm_link.c  loads the mesh; transfers with timeout and interrupts; breaking
 *   comm_host.c  the algorithms on host memory, over the mesh of comm_mesh.h
 *   comm_nccl.c  the same on CUDA
 *
 * comm.c calls all others, comm_nccl.c calls comm_host.c, and all call comm_link.c, which calls none of them. */
#ifndef LR_COMM_H
#define LR_COMM_H

#include "core/tensor.h"
#include "dist/comm_mesh.h"
#include <pthread.h>
#include <stdatomic.h>

typedef enum lr_comm_kind {
    LR_COMM_JOIN,
    LR_COMM_BARRIER,
    LR_COMM_ALL_REDUCE,
    LR_COMM_ALL_GATHER,
    LR_COMM_BROADCAST,
    LR_COMM_ALL_GATHER_BYTES,
    LR_COMM_BROADCAST_BYTES,
    LR_COMM_KIND_COUNT
} lr_comm_kind;

/* What a rank wants in a collective. Everything before `mine` must be the same on all ranks. */
typedef struct lr_comm_call {
    uint64_t sequence; /* counts collectives: the same on all ranks by construction */
    int32_t kind, reduce, dtype, device, root, world_size;
    int64_t elements; /* of the whole operation: for all_gather, of the output */
    int64_t mine;     /* bytes that this rank gives */
    int32_t status;   /* not LR_OK: this rank cannot take part; the payload says why */
    int32_t inline_size;
} lr_comm_call;

/* What ranks exchange in the agreement. Small operands are in it, so that a small collective is one exchange. */
enum { LR_COMM_INLINE = 2048 };
typedef struct lr_comm_slot {
    lr_comm_call call;
    char payload[LR_COMM_INLINE];
} lr_comm_slot;

typedef struct lr_nccl lr_nccl;

struct lr_comm {
    int rank, world_size;
    double timeout;
    char group[65];
    uint64_t sequence;
    lr_comm_slot *slots; /* [world_size]: what each rank wants in the current collective */
    lr_mesh_part *parts; /* [2 * world_size]: for transfers with all peers */
    uint8_t *lost;       /* [world_size] */
    void *scratch;       /* grows to what the largest all_reduce needs */
    int64_t scratch_size;
    /* Made by the first collective on CUDA, which also sets what frees it: NULL before and after. */
    lr_nccl *nccl;
    void (*free_device)(lr_comm *c, bool broken);
    const lr_mesh_calls *calls;
    pthread_mutex_t mutex; /* guards the fields below, which lr_comm_abort and the watcher use too */
    pthread_cond_t wake;   /* ends the watcher */
    lr_mesh *mesh;         /* NULL with one rank, and once broken */
    bool broken, stopping, watched, waiting;
    char why[512]; /* why it broke or was aborted */
    pthread_t watcher;
    atomic_bool aborted, interrupted;
};

/* ---- comm_link.c ---------------------------------------------------------------------------------------------------------- */
const char *lr_comm_kind_name(int kind);
int lr_comm_load(const lr_mesh_calls **out); /* the module with the mesh */
void lr_comm_close_mesh(lr_comm *c);
void lr_comm_unlink(lr_comm *c);
/* A transfer within the current collective, which began at `began` (lr_time). A failure breaks the communicator; its message
 * names the peers that are lost or did not come. */
int lr_comm_transfer(lr_comm *c, const lr_mesh_transfer *t, double began);
/* Ends the use of the communicator: closes the connections. Returns lr_fail(status, ...). */
int lr_comm_break(lr_comm *c, int status, const char *fmt, ...) LR_PRINTF(3, 4);
/* For a data plane that waits by itself: LR_OK, or an error if it was aborted or interrupted, a peer is lost, or time is up. */
int lr_comm_check(lr_comm *c, double began);
/* "rank 2", "ranks 0, 3-5": those with chosen[rank] != 0. */
const char *lr_comm_ranks_text(const uint8_t *chosen, int world_size, char buf[160]);

/* ---- comm_meet.c ---------------------------------------------------------------------------------------------------------- */
/* Connect to all peers, whose addresses are in the store. After a failure, lr_comm_unlink frees what there is. */
int lr_comm_meet(lr_comm *c, lr_store *store, const char *host);

/* ---- comm_host.c: after the agreement, for operands larger than LR_COMM_INLINE --------------------------------------- */
int64_t lr_comm_scratch_size(const lr_comm *c, const lr_comm_call *call); /* bytes that lr_host_all_reduce needs */
int lr_host_all_reduce(lr_comm *c, void *data, int64_t elements, int dtype, int reduce, double began);
/* own: this rank's bytes; out: those of all ranks, in rank order. The sizes are in c->slots. */
int lr_host_all_gather(lr_comm *c, const void *own, char *out, double began);
int lr_host_broadcast(lr_comm *c, void *data, int64_t size, int root, double began);
/* into[i] = into[i] op from[i] */
void lr_host_reduce(void *into, const void *from, int64_t elements, int dtype, int reduce);

/* ---- comm_nccl.c ---------------------------------------------------------------------------------------------------------- */
/* LR_EUNSUPPORTED: this build or machine has no NCCL. Each rank asks before the agreement. */
int lr_nccl_available(void);
/* Pointers are to device memory. */
int lr_nccl_all_reduce(lr_comm *c, void *data, int64_t elements, int dtype, int reduce, double began);
int lr_nccl_all_gather(lr_comm *c, const void *own, void *out, double began);
int lr_nccl_broadcast(lr_comm *c, void *data, int64_t size, int root, double began);

#endif
