/* cpu.h: what the CPU kernels share.
 *
 * The kernels are compiled once for each of four instruction sets (on x86-64: baseline, AVX2, AVX-512, and AVX-512 with bf16
 * products; elsewhere for the baseline alone), and one table of them is chosen when the program starts (select.c): one binary
 * serves every x86-64 and uses all of it. LR_CPU(name) gives a symbol the suffix of its instruction set. Loops are plain C that the
 * compiler vectorises; "omp simd" stands where it must.
 *
 * Kernels run on exec->threads OpenMP threads, the same pool as oneDNN's. They divide work by rows and add in an order that does
 * not depend on timing: equal inputs and thread counts give equal bits. Working memory is at exec->scratch (NAME_scratch). */
#ifndef LR_CPU_H
#define LR_CPU_H

#include "core/op.h"

#ifndef LR_CPU_SUFFIX
#define LR_CPU_SUFFIX baseline
#endif
#define LR_CPU_PASTE_(name, suffix) lr_cpu_##name##_##suffix
#define LR_CPU_PASTE(name, suffix) LR_CPU_PASTE_(name, suffix)
#define LR_CPU(name) LR_CPU_PASTE(name, LR_CPU_SUFFIX)

#define LR_KERNEL(name) LR_CPU(name)
#include "lr_ops_kernels.h"

#endif
