/* comm.c: the collectives as lr.h has them: argument checks, the agreement of the ranks, errors.
 *
 * A collective has two steps. In the agreement every rank sends every other one what it wants (lr_comm_call), with its operand
 * if that is small; a barrier is only this step. Then either all ranks return an error that names who wanted what, or all carry
 * it out, knowing that sizes and types fit.
 *
 * Invariants
 *   - A rank whose arguments are wrong still takes part in the agreement, to tell the others. So after such an error all ranks
 *     have done the same collectives, and the next one works.
 *   - Nothing is written to an operand before the agreement.
 *   - After the agreement nothing can fail on one rank alone without breaking the communicator: what is needed is allocated
 *     before, except the outputs of lr_comm_*_bytes, whose sizes are known only then. */
#include "dist/comm.h"
#include "core/device.h"
#include <stddef.h>
#include <stdio.h>
#include <string.h>

/* Every collective ends here. */
static int finish(int status)
{
    lr_rank_waits(NULL);
    return status;
}

/* ---- the agreement -------------------------------------------------------------------------------------------------------- */
static const char *const REDUCE_NAMES[LR_REDUCE_COUNT] = {"sum", "max", "min"};

static bool same(const lr_comm_call *a, const lr_comm_call *b)
{
    return a->sequence == b->sequence && a->kind == b->kind && a->reduce == b->reduce && a->dtype == b->dtype &&
           a->device == b->device && a->root == b->root && a->world_size == b->world_size && a->elements == b->elements;
}

/* "all_reduce(sum) of 1001 f32" */
static const char *call_text(const lr_comm_call *call, char buf[160])
{
    const char *name = lr_comm_kind_name(call->kind);
    char where[32] = "";
    if (!lr_device_addressable(call->device))
        (void)snprintf(where, sizeof where, " on %s", lr_device_name(call->device));
    const long long n = (long long)call->elements;
    switch (call->kind) {
    case LR_COMM_ALL_REDUCE:
        (void)snprintf(buf, 160, "%s(%s) of %lld %s%s", name,
                       call->reduce >= 0 && call->reduce < LR_REDUCE_COUNT ? REDUCE_NAMES[call->reduce] : "?", n,
                       lr_dtype_name(call->dtype), where);
        break;
    case LR_COMM_ALL_GATHER:
        (void)snprintf(buf, 160, "%s into %lld %s%s", name, n, lr_dtype_name(call->dtype), where);
        break;
    case LR_COMM_BROADCAST:
        (void)snprintf(buf, 160, "%s of %lld %s from rank %d%s", name, n, lr_dtype_name(call->dtype), call->root,
                       where);
        break;
    case LR_COMM_BROADCAST_BYTES:
        (void)snprintf(buf, 160, "%s from rank %d", name, call->root);
        break;
    default:
        (void)snprintf(buf, 160, "%s", name);
    }
    return buf;
}

/* "rank 0 wants barrier; ranks 1-3 want all_reduce(sum) of 4 f32" */
static int fail_differing(lr_comm *c)
{
    char text[1500], call[160], ranks[160];
    size_t used = 0;
    uint8_t *chosen = c->lost;
    text[0] = '\0';
    for (int i = 0; i < c->world_size && used + 1 < sizeof text; i++) {
        bool told = false;
        for (int j = 0; j < i && !told; j++)
            told = same(&c->slots[i].call, &c->slots[j].call);
        if (told)
            continue;
        int count = 0;
        for (int j = 0; j < c->world_size; j++) {
            chosen[j] = same(&c->slots[i].call, &c->slots[j].call);
            count += chosen[j];
        }
        const int n = snprintf(text + used, sizeof text - used, "%s%s %s %s", used > 0 ? "; " : "",
                               lr_comm_ranks_text(chosen, c->world_size, ranks), count > 1 ? "want" : "wants",
                               call_text(&c->slots[i].call, call));
        used = used + (size_t)n < sizeof text ? used + (size_t)n : sizeof text - 1;
    }
    return lr_fail(LR_EINVAL, "the ranks do not agree on collective %llu: %s", (unsigned long long)c->sequence, text);
}

/* Every rank computes the same from the same slots, except that a rank with an error of its own returns that one. */
static int judge(lr_comm *c)
{
    const lr_comm_slot *own = &c->slots[c->rank];
    for (int i = 0; i < c->world_size; i++)
        if (c->slots[i].call.sequence != c->sequence)
            return lr_comm_break(c, LR_EINTERNAL, "rank %d is at collective %llu, rank %d at %llu", i,
                                 (unsigned long long)c->slots[i].call.sequence, c->rank,
                                 (unsigned long long)c->sequence);
    if (own->call.status != LR_OK)
        return lr_fail(own->call.status, "%s", own->payload);
    for (int i = 0; i < c->world_size; i++)
        if (c->slots[i].call.status != LR_OK)
            return lr_fail(LR_EPEER, "rank %d failed in %s: %.*s", i, lr_comm_kind_name(c->slots[i].call.kind),
                           (int)lr_min64(c->slots[i].call.inline_size, LR_COMM_INLINE), c->slots[i].payload);
    for (int i = 0; i < c->world_size; i++)
        if (!same(&c->slots[i].call, &c->slots[0].call))
            return fail_differing(c);
    if (own->call.kind != LR_COMM_ALL_GATHER)
        return LR_OK;
    int64_t given = 0;
    const int64_t size = (int64_t)lr_dtype_size(own->call.dtype);
    for (int i = 0; i < c->world_size; i++)
        given += c->slots[i].call.mine / size;
    if (given != own->call.elements)
        return lr_fail(LR_ESHAPE, "all_gather: the ranks give %lld elements together, the output has %lld",
                       (long long)given, (long long)own->call.elements);
    return LR_OK;
}

/* Begin a collective: exchange slots with all peers. call->status is that of the caller's own checks, whose message is
 * lr_last_error(). payload: `mine` bytes of host memory, which are sent along if they fit, or NULL. */
static int agree(lr_comm *c, lr_comm_call *call, const void *payload, double *began)
{
    *began = lr_time();
    lr_rank_waits(lr_comm_kind_name(call->kind));
    if (c->broken)
        return lr_fail(LR_EPEER, "this rank left the others before: %s", c->why);
    if (atomic_load(&c->aborted))
        return lr_comm_check(c, *began);
    if (call->status == LR_OK && c->world_size > 1 && lr_comm_scratch_size(c, call) > c->scratch_size) {
        const int64_t need = lr_comm_scratch_size(c, call);
        void *scratch = lr_realloc(c->scratch, (size_t)need);
        if (scratch != NULL) {
            c->scratch = scratch;
            c->scratch_size = need;
        } else {
            call->status = LR_ENOMEM;
        }
    }
    lr_comm_slot *own = &c->slots[c->rank];
    call->sequence = ++c->sequence;
    call->world_size = c->world_size;
    call->inline_size = 0;
    if (call->status != LR_OK) {
        call->inline_size = 1 + snprintf(own->payload, sizeof own->payload, "%s", lr_last_error());
    } else if (payload != NULL && call->mine > 0 && call->mine <= LR_COMM_INLINE) {
        memcpy(own->payload, payload, (size_t)call->mine);
        call->inline_size = (int32_t)call->mine;
    }
    own->call = *call;
    if (c->world_size > 1) {
        const int64_t slot = (int64_t)sizeof(lr_comm_slot);
        lr_mesh_part *sends = c->parts, *receives = c->parts + c->world_size;
        int count = 0;
        for (int peer = 0; peer < c->world_size; peer++) {
            if (peer == c->rank)
                continue;
            sends[count] = (lr_mesh_part){peer, 0, (int64_t)offsetof(lr_comm_slot, payload) + call->inline_size};
            receives[count++] = (lr_mesh_part){peer, peer * slot, slot};
        }
        const lr_mesh_transfer t = {.out = own,
                                    .out_size = slot,
                                    .sends = sends,
                                    .send_count = count,
                                    .in = c->slots,
                                    .in_size = c->world_size * slot,
                                    .receives = receives,
                                    .receive_count = count};
        const int status = lr_comm_transfer(c, &t, *began);
        if (status != LR_OK)
            return status;
    }
    return judge(c);
}

/* ---- arguments ------------------------------------------------------------------------------------------------------------ */
static int check_tensor(const char *op, const char *what, const lr_tensor *t)
{
    char text[96];
    if (t == NULL)
        return lr_fail(LR_EINVAL, "%s: %s is missing", op, what);
    if (t->storage == NULL)
        return lr_fail(LR_EFREED, "%s: %s ('%s') was freed and is used again", op, what, t->name);
    if (t->packing != NULL)
        return lr_fail(LR_EUNSUPPORTED, "%s: %s ('%s') is packed", op, what, t->name);
    if (!lr_tensor_contiguous(t))
        return lr_fail(LR_ESHAPE, "%s: %s ('%s') of shape %s has rows that do not follow each other", op, what, t->name,
                       lr_shape_text(t, text));
    return LR_OK;
}

static int check_root(const lr_comm *c, const char *op, int root)
{
    if (root < 0 || root >= c->world_size)
        return lr_fail(LR_EINVAL, "%s: there is no rank %d among %d", op, root, c->world_size);
    return LR_OK;
}

/* `status`, or the reason why this rank cannot do it on the tensor's device. */
static int check_device(const lr_comm *c, const lr_tensor *t, int status)
{
    return status == LR_OK && !lr_device_addressable(t->device) && c->world_size > 1 ? lr_nccl_available() : status;
}

/* The meta device has no bytes: a step that is only planned must not use the network. */
static bool is_meta(const lr_tensor *t)
{
    return t != NULL && t->storage != NULL && t->device == LR_META;
}

static int64_t bytes_of(const lr_tensor *t)
{
    return t->elements * (int64_t)lr_dtype_size(t->dtype);
}

/* All operands were small enough to come with the agreement. */
static bool all_inline(const lr_comm *c)
{
    for (int i = 0; i < c->world_size; i++)
        if (c->slots[i].call.mine > LR_COMM_INLINE)
            return false;
    return true;
}

/* Put all payloads that came with the agreement one after the other. */
static void join_payloads(const lr_comm *c, char *out)
{
    for (int i = 0; i < c->world_size; i++) {
        memcpy(out, c->slots[i].payload, (size_t)c->slots[i].call.mine);
        out += c->slots[i].call.mine;
    }
}

/* ---- tensors -------------------------------------------------------------------------------------------------------------- */
int lr_comm_all_reduce(lr_comm *c, lr_tensor *t, int reduce)
{
    double began;
    if (is_meta(t))
        return LR_OK;
    int status = check_tensor("all_reduce", "the tensor", t);
    if (status == LR_OK && (reduce < 0 || reduce >= LR_REDUCE_COUNT))
        status = lr_fail(LR_EINVAL, "all_reduce: there is no reduction %d", reduce);
    status = check_device(c, t, status);
    lr_comm_call call = {.kind = LR_COMM_ALL_REDUCE, .reduce = reduce, .status = status};
    if (status == LR_OK) {
        call.dtype = t->dtype;
        call.device = t->device;
        call.elements = t->elements;
        call.mine = bytes_of(t);
    }
    status = agree(c, &call, lr_device_addressable(call.device) && status == LR_OK ? t->data : NULL, &began);
    if (status == LR_OK && c->world_size > 1) {
        if (!lr_device_addressable(call.device)) {
            status = lr_nccl_all_reduce(c, t->data, t->elements, t->dtype, reduce, began);
        } else if (call.mine > LR_COMM_INLINE) {
            status = lr_host_all_reduce(c, t->data, t->elements, t->dtype, reduce, began);
        } else { /* every rank reduces all operands in rank order: the same bits on all ranks */
            memcpy(t->data, c->slots[0].payload, (size_t)call.mine);
            for (int i = 1; i < c->world_size; i++)
                lr_host_reduce(t->data, c->slots[i].payload, t->elements, t->dtype, reduce);
        }
    }
    return finish(status);
}

/* For one rank: the output is `in`. */
static int copy_tensor(lr_tensor *out, const lr_tensor *in)
{
    void *host = lr_alloc((size_t)bytes_of(in));
    if (host == NULL)
        return LR_ENOMEM;
    int status = lr_tensor_read(in, 0, in->elements, host);
    if (status == LR_OK)
        status = lr_tensor_write(out, 0, out->elements, host);
    lr_free(host);
    return status;
}

static bool overlap(const lr_tensor *a, const lr_tensor *b)
{
    const char *p = a->data, *q = b->data;
    return p < q + bytes_of(b) && q < p + bytes_of(a);
}

int lr_comm_all_gather(lr_comm *c, lr_tensor *out, const lr_tensor *in)
{
    double began;
    if (is_meta(out))
        return LR_OK;
    int status = check_tensor("all_gather", "the output", out);
    if (status == LR_OK && in != NULL)
        status = check_tensor("all_gather", "the input", in);
    if (status == LR_OK && in != NULL && in->dtype != out->dtype)
        status = lr_fail(LR_EDTYPE, "all_gather: the input ('%s') is %s, the output %s", in->name,
                         lr_dtype_name(in->dtype), lr_dtype_name(out->dtype));
    if (status == LR_OK && in != NULL && in->device != out->device)
        status = lr_fail(LR_EDEVICE, "all_gather: the input ('%s') is on %s, the output on %s", in->name,
                         lr_device_name(in->device), lr_device_name(out->device));
    if (status == LR_OK && in != NULL && overlap(in, out))
        status = lr_fail(LR_EINVAL, "all_gather: input ('%s') and output share memory", in->name);
    status = check_device(c, out, status);
    lr_comm_call call = {.kind = LR_COMM_ALL_GATHER, .status = status};
    if (status == LR_OK) {
        call.dtype = out->dtype;
        call.device = out->device;
        call.elements = out->elements;
        call.mine = in != NULL ? bytes_of(in) : 0;
    }
    const void *own = status == LR_OK && in != NULL ? in->data : NULL;
    status = agree(c, &call, lr_device_addressable(call.device) ? own : NULL, &began);
    if (status == LR_OK && !lr_device_addressable(call.device) && c->world_size > 1)
        status = lr_nccl_all_gather(c, own, out->data, began);
    else if (status == LR_OK && c->world_size == 1)
        status = copy_tensor(out, in);
    else if (status == LR_OK && all_inline(c))
        join_payloads(c, out->data);
    else if (status == LR_OK)
        status = lr_host_all_gather(c, own, out->data, began);
    return finish(status);
}

int lr_comm_broadcast(lr_comm *c, lr_tensor *t, int root)
{
    double began;
    if (is_meta(t))
        return LR_OK;
    int status = check_tensor("broadcast", "the tensor", t);
    if (status == LR_OK)
        status = check_root(c, "broadcast", root);
    status = check_device(c, t, status);
    lr_comm_call call = {.kind = LR_COMM_BROADCAST, .root = root, .status = status};
    if (status == LR_OK) {
        call.dtype = t->dtype;
        call.device = t->device;
        call.elements = t->elements;
        call.mine = root == c->rank ? bytes_of(t) : 0;
    }
    status = agree(c, &call, call.mine > 0 && lr_device_addressable(call.device) ? t->data : NULL, &began);
    if (status == LR_OK && c->world_size > 1) {
        if (!lr_device_addressable(call.device))
            status = lr_nccl_broadcast(c, t->data, bytes_of(t), root, began);
        else if (bytes_of(t) <= LR_COMM_INLINE)
            memcpy(t->data, c->slots[root].payload, (size_t)bytes_of(t));
        else
            status = lr_host_broadcast(c, t->data, bytes_of(t), root, began);
    }
    return finish(status);
}

static int barrier(lr_comm *c, int kind)
{
    double began;
    lr_comm_call call = {.kind = kind};
    return finish(agree(c, &call, NULL, &began));
}

int lr_comm_barrier(lr_comm *c)
{
    return barrier(c, LR_COMM_BARRIER);
}

/* ---- bytes ---------------------------------------------------------------------------------------------------------------- */
static int check_bytes(const char *op, const void *data, int64_t size)
{
    if (size < 0 || (size > 0 && data == NULL))
        return lr_fail(LR_EINVAL, "%s: %lld bytes at %p", op, (long long)size, data);
    return LR_OK;
}

/* Room for the output, whose size is known only now. If memory runs out, the communicator breaks, so that no rank waits. */
static char *new_output(lr_comm *c, int64_t size)
{
    char *out = lr_alloc((size_t)size + 1);
    if (out == NULL)
        (void)lr_comm_break(c, LR_ENOMEM, "%s: out of memory for %lld bytes",
                            lr_comm_kind_name(c->slots[c->rank].call.kind), (long long)size);
    else
        out[size] = '\0';
    return out;
}

static int gather_bytes(lr_comm *c, const void *data, char **out, int64_t *sizes, double began)
{
    int64_t total = 0;
    for (int i = 0; i < c->world_size; i++)
        if (c->slots[i].call.mine < 0 || __builtin_add_overflow(total, c->slots[i].call.mine, &total))
            return lr_fail(LR_EINVAL, "all_gather_bytes: more bytes than can be counted");
    char *block = new_output(c, total);
    if (block == NULL)
        return LR_ENOMEM;
    int status = LR_OK;
    if (c->world_size == 1)
        memcpy(block, total > 0 ? data : "", (size_t)total);
    else if (all_inline(c))
        join_payloads(c, block);
    else
        status = lr_host_all_gather(c, data, block, began);
    if (status != LR_OK) {
        lr_free(block);
        return status;
    }
    for (int i = 0; i < c->world_size; i++)
        sizes[i] = c->slots[i].call.mine;
    *out = block;
    return LR_OK;
}

int lr_comm_all_gather_bytes(lr_comm *c, const void *data, int64_t size, char **out, int64_t *sizes)
{
    double began;
    int status = check_bytes("all_gather_bytes", data, size);
    lr_comm_call call = {.kind = LR_COMM_ALL_GATHER_BYTES, .status = status, .mine = status == LR_OK ? size : 0};
    status = agree(c, &call, data, &began);
    if (status == LR_OK)
        status = gather_bytes(c, data, out, sizes, began);
    return finish(status);
}

static int spread_bytes(lr_comm *c, const void *data, int root, char **out, int64_t *out_size, double began)
{
    const lr_comm_slot *slot = &c->slots[root];
    const int64_t size = slot->call.mine;
    char *block = new_output(c, size);
    if (block == NULL)
        return LR_ENOMEM;
    int status = LR_OK;
    if (size > 0 && root == c->rank)
        memcpy(block, data, (size_t)size);
    if (c->world_size > 1 && size > LR_COMM_INLINE)
        status = lr_host_broadcast(c, block, size, root, began);
    else if (size > 0 && root != c->rank)
        memcpy(block, slot->payload, (size_t)size);
    if (status != LR_OK) {
        lr_free(block);
        return status;
    }
    *out = block;
    *out_size = size;
    return LR_OK;
}

int lr_comm_broadcast_bytes(lr_comm *c, const void *data, int64_t size, int root, char **out, int64_t *out_size)
{
    double began;
    int status = check_root(c, "broadcast_bytes", root);
    if (status == LR_OK && root == c->rank)
        status = check_bytes("broadcast_bytes", data, size);
    lr_comm_call call = {.kind = LR_COMM_BROADCAST_BYTES, .root = root, .status = status};
    call.mine = status == LR_OK && root == c->rank ? size : 0;
    status = agree(c, &call, root == c->rank ? data : NULL, &began);
    if (status == LR_OK)
        status = spread_bytes(c, data, root, out, out_size, began);
    return finish(status);
}

/* ---- making and freeing ------------------------------------------------------------------------------------------------------ */
static int check_options(const lr_store *store, const lr_comm_options *o)
{
    enum { MOST_RANKS = 1 << 16 };
    if (o->world_size < 1 || o->world_size > MOST_RANKS)
        return lr_fail(LR_EINVAL, "a job has 1 to %d ranks, not %d", MOST_RANKS, o->world_size);
    if (o->rank < 0 || o->rank >= o->world_size)
        return lr_fail(LR_EINVAL, "there is no rank %d among %d", o->rank, o->world_size);
    if (!(o->timeout > 0))
        return lr_fail(LR_EINVAL, "the timeout is %g s; it must be above 0", o->timeout);
    if (o->world_size == 1)
        return LR_OK;
    if (store == NULL || o->host == NULL)
        return lr_fail(LR_EINVAL, "several ranks need a store and its host");
    if (o->group == NULL || *o->group == '\0' || strlen(o->group) > sizeof((lr_comm *)0)->group - 1)
        return lr_fail(LR_EINVAL, "the group's name must have 1 to %zu bytes", sizeof((lr_comm *)0)->group - 1);
    return LR_OK;
}

/* pthread_cond_timedwait uses the monotonic clock, which nobody sets. */
static void init_locks(lr_comm *c)
{
    pthread_condattr_t attributes;
    (void)pthread_mutex_init(&c->mutex, NULL);
    (void)pthread_condattr_init(&attributes);
    (void)pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    (void)pthread_cond_init(&c->wake, &attributes);
    (void)pthread_condattr_destroy(&attributes);
}

int lr_comm_new(lr_comm **out, lr_store *store, const lr_comm_options *options)
{
    int status = check_options(store, options);
    if (status != LR_OK)
        return status;
    lr_comm *c = lr_calloc(1, sizeof *c);
    if (c == NULL)
        return LR_ENOMEM;
    const size_t n = (size_t)options->world_size;
    c->rank = options->rank;
    c->world_size = options->world_size;
    c->timeout = options->timeout;
    (void)snprintf(c->group, sizeof c->group, "%s", options->group != NULL ? options->group : "");
    init_locks(c);
    c->slots = lr_calloc(n, sizeof *c->slots);
    c->parts = c->slots != NULL ? lr_calloc(2 * n, sizeof *c->parts) : NULL;
    c->lost = c->parts != NULL ? lr_calloc(n, 1) : NULL;
    status = c->lost != NULL ? LR_OK : LR_ENOMEM;
    if (status == LR_OK && c->world_size > 1)
        status = lr_comm_meet(c, store, options->host);
    if (status == LR_OK) /* from here on all ranks are connected, and none needs the store */
        status = barrier(c, LR_COMM_JOIN);
    if (status != LR_OK) {
        lr_comm_free(c);
        return status;
    }
    *out = c;
    return LR_OK;
}

int lr_comm_connected(const lr_comm *c)
{
    return !c->broken;
}

void lr_comm_free(lr_comm *c)
{
    if (c == NULL)
        return;
    if (c->free_device != NULL)
        c->free_device(c, false);
    lr_comm_unlink(c);
    (void)pthread_cond_destroy(&c->wake);
    (void)pthread_mutex_destroy(&c->mutex);
    lr_free(c->scratch);
    lr_free(c->lost);
    lr_free(c->parts);
    lr_free(c->slots);
    lr_free(c);
}
