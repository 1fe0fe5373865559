/* interrupt.c: the flag that Ctrl-C raises at the prompt, and that ops look at. */
#include "core/core.h"
#include <signal.h>
#include <stdatomic.h>

static atomic_int interrupts_on;
static volatile sig_atomic_t interrupt_flag;

void lr_interrupt_enable(int on)
{
    atomic_store(&interrupts_on, on);
    interrupt_flag = 0;
}

int lr_interrupt_enabled(void)
{
    return atomic_load(&interrupts_on) != 0;
}

void lr_interrupt_raise(void)
{
    interrupt_flag = 1;
}

int lr_interrupt_take(void)
{
    if (!interrupt_flag || !atomic_load(&interrupts_on))
        return 0;
    interrupt_flag = 0;
    return 1;
}
