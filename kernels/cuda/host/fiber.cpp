/* fiber.cpp: stacks and the switch between them.
 *
 * On x86-64 a switch saves the six registers that a callee must keep, and takes some 3 ns; elsewhere it is swapcontext.
 * AddressSanitizer is told of each switch, else it would take one fiber's stack for another's. */
#include "cuda/host/fiber.h"
#include "cuda/host/simt_host.h"
#include <sys/mman.h>

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

namespace simt
{

#ifdef __SANITIZE_ADDRESS__
/* Before a switch: where it goes. fake_stack keeps what belongs to the stack that is left; NULL where it is left for good. */
static void will_switch(void **fake_stack, const void *bottom, size_t size)
{
    __sanitizer_start_switch_fiber(fake_stack, bottom, size);
}
static void did_switch(void *fake_stack, const void **old_bottom, size_t *old_size)
{
    __sanitizer_finish_switch_fiber(fake_stack, old_bottom, old_size);
}
static void forget_frames(void *stack, size_t size)
{
    __asan_unpoison_memory_region(stack, size);
}
#else
static void will_switch(void **, const void *, size_t)
{
}
static void did_switch(void *, const void **, size_t *)
{
}
static void forget_frames(void *, size_t)
{
}
#endif
/* The stack that a thread may use, and the larger one that it gets: a thread that uses somewhat more is reported before it
 * overwrites the next stack. */
static const size_t STACK_LIMIT = 128 * 1024, STACK = 2 * STACK_LIMIT; /* mapped on first touch */

#if defined(__x86_64__)
struct context {
    void *sp;
};
extern "C" void lr_simt_switch(void **save, void *load);
__asm__(".text\n"
        ".globl lr_simt_switch\n"
        ".hidden lr_simt_switch\n"
        ".type lr_simt_switch, @function\n"
        "lr_simt_switch:\n"
        "  endbr64\n"
        "  push %rbp\n  push %rbx\n  push %r12\n  push %r13\n  push %r14\n  push %r15\n"
        "  mov %rsp, (%rdi)\n"
        "  mov %rsi, %rsp\n"
        "  pop %r15\n  pop %r14\n  pop %r13\n  pop %r12\n  pop %rbx\n  pop %rbp\n"
        "  ret\n"
        ".size lr_simt_switch, . - lr_simt_switch\n");

static void context_switch(context *from, context *to)
{
    lr_simt_switch(&from->sp, to->sp);
}

static void context_make(context *c, unsigned char *stack, void (*entry)())
{
    uintptr_t *top = reinterpret_cast<uintptr_t *>(stack + STACK);
    *--top = 0; /* entry's return address: it never returns */
    *--top = reinterpret_cast<uintptr_t>(entry);
    for (int i = 0; i < 6; i++)
        *--top = 0;
    c->sp = top;
}
#else
#include <ucontext.h>
struct context {
    ucontext_t u;
};

static void context_switch(context *from, context *to)
{
    swapcontext(&from->u, &to->u);
}

static void context_make(context *c, unsigned char *stack, void (*entry)())
{
    getcontext(&c->u);
    c->u.uc_stack.ss_sp = stack;
    c->u.uc_stack.ss_size = STACK;
    c->u.uc_link = nullptr;
    makecontext(&c->u, entry, 0);
}
#endif

struct fiber {
    context at;
    void (*entry)();
    void *fake_stack; /* AddressSanitizer's */
};

static unsigned char *stacks;
static fiber fibers[MAX_THREADS];
static context home;
static int starting;            /* the fiber whose first instructions run */
static const void *home_bottom; /* the scheduler's stack */
static size_t home_size;

static unsigned char *stack_of(int i)
{
    return stacks + static_cast<size_t>(i) * STACK;
}

int fibers_reserve()
{
    if (stacks != nullptr)
        return LR_OK;
    void *p =
        mmap(nullptr, MAX_THREADS * STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED)
        return lr_fail(LR_ENOMEM, "out of host memory: %zu bytes for the stacks of CUDA threads", MAX_THREADS * STACK);
    stacks = static_cast<unsigned char *>(p);
    return LR_OK;
}

static void first_entry()
{
    fiber *f = &fibers[starting];
    did_switch(nullptr, &home_bottom, &home_size);
    f->entry();
}

void fiber_prepare(int i, void (*entry)())
{
    fiber *f = &fibers[i];
    forget_frames(stack_of(i), STACK); /* AddressSanitizer's marks, where a fault ended the fiber */
    f->entry = entry;
    context_make(&f->at, stack_of(i), first_entry);
}

void fiber_resume(int i)
{
    starting = i;
    void *fake_stack = nullptr;
    will_switch(&fake_stack, stack_of(i), STACK);
    context_switch(&home, &fibers[i].at);
    did_switch(fake_stack, nullptr, nullptr);
}

void fiber_suspend(int i)
{
    fiber *f = &fibers[i];
    if (static_cast<unsigned char *>(__builtin_frame_address(0)) < stack_of(i) + (STACK - STACK_LIMIT))
        fault("a thread uses more than %zu bytes of stack", STACK_LIMIT);
    will_switch(&f->fake_stack, home_bottom, home_size);
    context_switch(&f->at, &home);
    did_switch(f->fake_stack, &home_bottom, &home_size);
}

void fiber_finish(int i)
{
    will_switch(nullptr, home_bottom, home_size);
    context_switch(&fibers[i].at, &home);
    __builtin_unreachable();
}

} // namespace simt
