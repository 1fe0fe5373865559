/* crc32c.c: CRC-32C, the polynomial 0x1EDC6F41 that iSCSI, ext4 and SSE4.2 use.
 *
 * x86 has an instruction for it: 8 bytes in 3 cycles, faster than any disk. Other machines do 8 bytes with eight table look-ups
 * ("slicing by 8"). Both give the same number. The crc passed in and the result are in the usual form, inverted at both ends. */
#include "io/file.h"
#include <pthread.h>
#include <string.h>

enum { SLICES = 8 };
static const uint32_t POLYNOMIAL = 0x82f63b78; /* bit-reversed */

static uint32_t table[SLICES][256];
static pthread_once_t table_once = PTHREAD_ONCE_INIT;

static void make_table(void)
{
    for (uint32_t i = 0; i < 256; i++) {
        uint32_t c = i;
        for (int bit = 0; bit < 8; bit++)
            c = (c >> 1) ^ (c & 1 ? POLYNOMIAL : 0);
        table[0][i] = c;
    }
    /* table[k][i]: byte i followed by k zero bytes. */
    for (int k = 1; k < SLICES; k++)
        for (int i = 0; i < 256; i++)
            table[k][i] = (table[k - 1][i] >> 8) ^ table[0][table[k - 1][i] & 0xff];
}

uint32_t lr_crc32c_portable(uint32_t crc, const void *data, size_t size)
{
    pthread_once(&table_once, make_table);
    const unsigned char *p = data;
    uint32_t c = ~crc;
    for (; size >= SLICES; size -= SLICES, p += SLICES) {
        const uint32_t low = c ^ ((uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24);
        c = table[7][low & 0xff] ^ table[6][low >> 8 & 0xff] ^ table[5][low >> 16 & 0xff] ^ table[4][low >> 24] ^
            table[3][p[4]] ^ table[2][p[5]] ^ table[1][p[6]] ^ table[0][p[7]];
    }
    while (size-- > 0)
        c = (c >> 8) ^ table[0][(c ^ *p++) & 0xff];
    return ~c;
}

#ifdef __x86_64__
__attribute__((target("sse4.2"))) static uint32_t crc_sse42(uint32_t crc, const void *data, size_t size)
{
    const unsigned char *p = data;
    uint64_t c = (uint32_t)~crc;
    for (; size >= 8; size -= 8, p += 8) {
        uint64_t word;
        memcpy(&word, p, sizeof word);
        c = __builtin_ia32_crc32di(c, word);
    }
    uint32_t tail = (uint32_t)c;
    while (size-- > 0)
        tail = __builtin_ia32_crc32qi(tail, *p++);
    return ~tail;
}

uint32_t lr_crc32c(uint32_t crc, const void *data, size_t size)
{
    return __builtin_cpu_supports("sse4.2") ? crc_sse42(crc, data, size) : lr_crc32c_portable(crc, data, size);
}
#else
uint32_t lr_crc32c(uint32_t crc, const void *data, size_t size)
{
    return lr_crc32c_portable(crc, data, size);
}
#endif
