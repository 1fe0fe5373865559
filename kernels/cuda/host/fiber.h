/* fiber.h: stacks that take turns on one thread of the operating system. See fiber.cpp. */
#ifndef LR_FIBER_H
#define LR_FIBER_H

namespace simt
{

/* Map the stacks; LR_OK, or LR_ENOMEM with lr_fail called. Later calls have nothing to do. */
int fibers_reserve();
/* Fiber i will run entry() when it is first resumed. entry ends with fiber_finish. */
void fiber_prepare(int i, void (*entry)());
/* From the thread's own stack: run fiber i until it gives way. */
void fiber_resume(int i);
/* From fiber i: back to fiber_resume's caller; returns when resumed. */
void fiber_suspend(int i);
[[noreturn]] void fiber_finish(int i);

} // namespace simt

#endif
