/* scheduler.cpp: runs grids. The threads of a block are fibers; those that can go on are in a queue, and one that waits for a
 * barrier or for its warp is not. When the queue is empty and some thread waits, the block is in deadlock.
 *
 * By default the queue is first in, first out. With a seed the next thread is drawn from it at random, and so is the order of the
 * blocks, so that kernels which depend on an order fail.
 *
 * A fault is kept as text; then every remaining fiber is resumed once to end itself, and the launch returns the text. All state is
 * static: a block has at most 1024 threads. One thread of the operating system launches, as in all of lorarun. */
#include "cuda/host/scheduler.h"
#include "core/philox.h"
#include "cuda/host/device_host.h"
#include "cuda/host/fiber.h"
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

namespace simt
{

enum { LANES = 32, MAX_WARPS_IN_BLOCK = MAX_THREADS / LANES, MAX_MEETINGS = 2 * LANES + 1 };

/* Lanes of one mask that wait for each other, then read each other's deposits. */
struct meeting {
    unsigned mask;    /* 0: free */
    unsigned arrived; /* lanes whose deposit is here */
    unsigned readers; /* lanes that may still look at the deposits */
    bool complete;
    const char *file;
    int line;
    unsigned char deposit[LANES][MAX_DEPOSIT];
};

struct thread_state {
    uint64_t sync;
    meeting *at; /* that of its last warp function */
};

static struct {
    const char *name; /* of the kernel; NULL when none runs */
    void (*body)(void *);
    void *context;
    int threads, live, current;
    uint64_t epoch, syncs;
    thread_state thread[MAX_THREADS];
    unsigned living[MAX_WARPS_IN_BLOCK]; /* lanes whose thread has not ended */
    meeting meetings[MAX_WARPS_IN_BLOCK][MAX_MEETINGS];
    int meetings_begun[MAX_WARPS_IN_BLOCK];           /* the others have not been used in this block */
    int ready[MAX_THREADS], ready_first, ready_count; /* a ring */
    int waiting;                                      /* at the barrier */
    int votes,
        votes_before; /* true predicates there; and at the barrier before, for those that have not read them yet */
    const char *barrier_file;
    int barrier_line, barrier_thread;
    bool faulted;
    char message[512];
} block;

/* ---- order ------------------------------------------------------------------------------------------------------------- */
static uint64_t seed, draws;
static bool seed_known;

void set_seed(uint64_t s)
{
    seed = s;
    seed_known = true;
}

static uint32_t draw(uint32_t below)
{
    uint32_t out[4];
    lr_random(seed, 0, 0, draws++, out);
    return static_cast<uint32_t>(static_cast<uint64_t>(out[0]) * below >> 32);
}

static void make_ready(int thread)
{
    block.ready[(block.ready_first + block.ready_count++) % MAX_THREADS] = thread;
}

static int take_ready()
{
    if (seed != 0) {
        int *first = &block.ready[block.ready_first];
        int *chosen =
            &block.ready[(block.ready_first + static_cast<int>(draw(static_cast<uint32_t>(block.ready_count)))) %
                         MAX_THREADS];
        const int thread = *chosen;
        *chosen = *first;
        *first = thread;
    }
    const int thread = block.ready[block.ready_first];
    block.ready_first = (block.ready_first + 1) % MAX_THREADS;
    block.ready_count--;
    return thread;
}

/* ---- faults ------------------------------------------------------------------------------------------------------------ */
static void note_fault(int thread, const char *fmt, va_list args)
{
    if (block.faulted)
        return; /* the first one is the cause */
    block.faulted = true;
    const int used = snprintf(block.message, sizeof block.message, "%s: block %u,%u,%u", block.name, blockIdx.x,
                              blockIdx.y, blockIdx.z);
    size_t at = static_cast<size_t>(used);
    if (thread >= 0 && at < sizeof block.message)
        at += static_cast<size_t>(snprintf(block.message + at, sizeof block.message - at, ", thread %d", thread));
    if (at < sizeof block.message)
        at += static_cast<size_t>(snprintf(block.message + at, sizeof block.message - at, ": "));
    if (at < sizeof block.message)
        vsnprintf(block.message + at, sizeof block.message - at, fmt, args);
}

static bool lives(int thread)
{
    return (block.living[thread / LANES] >> thread % LANES & 1) != 0;
}

static void bury(int thread)
{
    block.living[thread / LANES] &= ~(1u << thread % LANES);
    block.live--;
}

[[noreturn]] static void end_thread()
{
    bury(block.current);
    fiber_finish(block.current);
}

void fault(const char *fmt, ...)
{
    va_list args;
    va_start(args, fmt);
    note_fault(block.current, fmt, args);
    va_end(args);
    end_thread();
}

LR_PRINTF(1, 2) static void block_fault(const char *fmt, ...)
{
    va_list args;
    va_start(args, fmt);
    note_fault(-1, fmt, args);
    va_end(args);
}

/* Give way; back when made ready again, unless the block has faulted since. */
static void wait_for_turn()
{
    fiber_suspend(block.current);
    if (block.faulted)
        end_thread();
}

/* ---- barriers ---------------------------------------------------------------------------------------------------------- */
int current_thread()
{
    return block.current;
}

moment now()
{
    return {block.current, block.epoch, block.thread[block.current].sync};
}

static const char *base_name(const char *path)
{
    const char *slash = strrchr(path, '/');
    return slash != nullptr ? slash + 1 : path;
}

/* All threads that have not ended are at the barrier: a new epoch begins. `except` is not waiting, for it runs. */
static void open_barrier(int except)
{
    block.votes_before = block.votes;
    block.votes = 0;
    block.waiting = 0;
    block.barrier_file = nullptr;
    block.epoch++;
    for (int i = 0; i < block.threads; i++)
        if (i != except && lives(i))
            make_ready(i);
}

int barrier(bool predicate, const char *file, int line)
{
    const int self = block.current;
    if (block.barrier_file == nullptr) {
        block.barrier_file = file;
        block.barrier_line = line;
        block.barrier_thread = self;
    } else if (block.barrier_line != line || strcmp(block.barrier_file, file) != 0) {
        fault("divergent barriers: this thread is at %s:%d, thread %d at %s:%d", base_name(file), line,
              block.barrier_thread, base_name(block.barrier_file), block.barrier_line);
    }
    block.votes += predicate;
    block.waiting++;
    if (block.waiting == block.live) {
        open_barrier(self);
        return block.votes_before;
    }
    wait_for_turn();
    return block.votes_before;
}

/* ---- warp functions ---------------------------------------------------------------------------------------------------- */
/* The lane no longer looks at the deposits of its last meeting. */
static void leave_meeting(int thread)
{
    meeting *m = block.thread[thread].at;
    block.thread[thread].at = nullptr;
    if (m == nullptr)
        return;
    m->readers &= ~(1u << thread % LANES);
    if (m->readers == 0)
        m->mask = 0;
}

static meeting *find_meeting(int warp, unsigned mask)
{
    meeting *unused = nullptr;
    for (int i = 0; i < block.meetings_begun[warp]; i++) {
        meeting *m = &block.meetings[warp][i];
        if (m->mask == mask && !m->complete)
            return m;
        if (m->mask == 0 && unused == nullptr)
            unused = m;
    }
    if (unused == nullptr) /* there is one: each lane holds at most the one it waits for and the one it reads */
        unused = &block.meetings[warp][block.meetings_begun[warp]++];
    unused->mask = mask;
    unused->arrived = unused->readers = 0;
    unused->complete = false;
    unused->file = nullptr;
    return unused;
}

/* Where all lanes of the mask whose threads have not ended are there, let them go on. `except` runs already. */
static bool complete_meeting(meeting *m, int warp, int except)
{
    if (m->mask == 0 || m->complete || (m->mask & block.living[warp] & ~m->arrived) != 0)
        return false;
    m->complete = true;
    block.syncs++;
    for (int i = 0; i < LANES; i++) {
        const int thread = warp * LANES + i;
        if (!(m->arrived >> i & 1))
            continue;
        if (thread != except)
            make_ready(thread);
    }
    return true;
}

deposits exchange(unsigned mask, const void *value, size_t bytes, bool orders, const char *file, int line)
{
    const int self = block.current, warp = self / LANES, lane = self % LANES;
    if (!(mask >> lane & 1))
        fault("%s:%d: lane %d calls with mask %08x, which lacks it", base_name(file), line, lane, mask);
    if (bytes > MAX_DEPOSIT)
        fault("%s:%d: %zu bytes are more than a lane can leave", base_name(file), line, bytes);
    leave_meeting(self);
    for (int i = 0; i < block.meetings_begun[warp]; i++) {
        const meeting &m = block.meetings[warp][i];
        if (m.mask != 0 && !m.complete && m.mask != mask && (m.mask & mask) != 0)
            fault("%s:%d: mask %08x, but other lanes wait at %s:%d with mask %08x", base_name(file), line, mask,
                  base_name(m.file), m.line, m.mask);
    }
    meeting *m = find_meeting(warp, mask);
    if (m->file == nullptr) {
        m->file = file;
        m->line = line;
    } else if (m->line != line || (m->file != file && strcmp(m->file, file) != 0)) {
        fault("divergent warp: this lane is at %s:%d, others at %s:%d", base_name(file), line, base_name(m->file),
              m->line);
    }
    memcpy(m->deposit[lane], value, bytes);
    m->arrived |= 1u << lane;
    m->readers |= 1u << lane;
    block.thread[self].at = m;
    if (!complete_meeting(m, warp, self))
        wait_for_turn();
    if (orders)
        block.thread[self].sync = block.syncs;
    return {m->arrived, m->deposit};
}

/* ---- grids ------------------------------------------------------------------------------------------------------------- */
static void thread_main()
{
    const int self = block.current;
    if (block.faulted) /* before this thread had its first turn */
        end_thread();
    block.body(block.context);
    leave_meeting(self);
    bury(self);
    /* Barriers and warps that wait for all threads no longer wait for this one. */
    if (block.live > 0 && block.waiting == block.live)
        open_barrier(-1);
    for (int i = 0; i < block.meetings_begun[self / LANES]; i++)
        complete_meeting(&block.meetings[self / LANES][i], self / LANES, -1);
    fiber_finish(self);
}

static void enter(int thread)
{
    const unsigned t = static_cast<unsigned>(thread);
    block.current = thread;
    threadIdx = {t % blockDim.x, t / blockDim.x % blockDim.y, t / (blockDim.x * blockDim.y)};
    fiber_resume(thread);
}

static void run_block(size_t shared_bytes)
{
    block.live = block.threads;
    block.waiting = block.votes = 0;
    block.barrier_file = nullptr;
    block.ready_first = block.ready_count = 0;
    block.epoch++;
    shadow_begin_block(block.epoch, shared_bytes);
    for (int i = 0; i < (block.threads + LANES - 1) / LANES; i++) {
        block.meetings_begun[i] = 0;
        block.living[i] = 0;
    }
    for (int i = 0; i < block.threads; i++) {
        block.living[i / LANES] |= 1u << i % LANES;
        block.thread[i] = {0, nullptr};
        fiber_prepare(i, thread_main);
        make_ready(i);
    }
    while (block.ready_count > 0 && !block.faulted)
        enter(take_ready());
    if (block.live > 0 && !block.faulted) {
        if (block.waiting > 0)
            block_fault("deadlock: %d of %d threads wait at the barrier %s:%d, the others in their warps",
                        block.waiting, block.live, base_name(block.barrier_file), block.barrier_line);
        else
            block_fault("deadlock: %d threads wait for lanes that never come", block.live);
    }
    for (int i = 0; i < block.threads; i++) /* after a fault */
        if (lives(i))
            enter(i);
}

static int check_launch(const launch_spec &s)
{
    const uint64_t threads = static_cast<uint64_t>(s.block.x) * s.block.y * s.block.z;
    const char *wrong = threads == 0 || threads > MAX_THREADS || s.block.z > 64 ? "a block has 1 to 1024 threads"
                        : s.grid.x == 0 || s.grid.y == 0 || s.grid.z == 0       ? "the grid is empty"
                        : s.grid.x > 0x7fffffffu || s.grid.y > 65535 || s.grid.z > 65535 ? "the grid is too large"
                        : s.shared_bytes > MAX_SHARED ? "too much dynamic shared memory"
                                                      : nullptr;
    if (wrong == nullptr)
        return LR_OK;
    return lr_fail(LR_EINTERNAL, "%s: a launch of %u,%u,%u blocks of %u,%u,%u threads and %zu bytes: %s", s.name,
                   s.grid.x, s.grid.y, s.grid.z, s.block.x, s.block.y, s.block.z, s.shared_bytes, wrong);
}

static uint64_t common_divisor(uint64_t a, uint64_t b)
{
    while (b != 0) {
        const uint64_t rest = a % b;
        a = b;
        b = rest;
    }
    return a;
}

int run_grid(const launch_spec &spec, void (*body)(void *), void *context)
{
    if (!seed_known) {
        const char *text = getenv("LORARUN_SIMT_SEED");
        set_seed(text != nullptr ? strtoull(text, nullptr, 10) : 0);
    }
    int status = check_launch(spec);
    if (status == LR_OK)
        status = fibers_reserve();
    if (status != LR_OK)
        return status;
    block.name = spec.name;
    block.body = body;
    block.context = context;
    block.threads = static_cast<int>(spec.block.x * spec.block.y * spec.block.z);
    block.faulted = false;
    blockDim = spec.block;
    gridDim = spec.grid;
    const uint64_t row = spec.grid.x, blocks = row * spec.grid.y * spec.grid.z;
    uint64_t step = 1, start = 0; /* block number k is start + k step, modulo their count: each once */
    if (seed != 0 && blocks > 1) {
        start = draw(0xffffffffu) % blocks;
        step = 1 + draw(0xffffffffu) % blocks;
        while (common_divisor(step, blocks) != 1)
            step++;
    }
    lr_device_memory_open();
    for (uint64_t k = 0; k < blocks && !block.faulted; k++) {
        const uint64_t b = (start + k * step) % blocks;
        blockIdx = {static_cast<unsigned>(b % row), static_cast<unsigned>(b / row % spec.grid.y),
                    static_cast<unsigned>(b / row / spec.grid.y)};
        run_block(spec.shared_bytes);
    }
    lr_device_memory_close();
    return block.faulted ? lr_fail(LR_EINTERNAL, "%s", block.message) : LR_OK;
}

} // namespace simt
