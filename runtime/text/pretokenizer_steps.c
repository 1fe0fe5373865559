/* pretokenizer_steps.c: how a step of a pre-tokenizer cuts its piece of text.
 *
 * Each step passes the parts of its piece on to the next step, the last one passes words to the sink. So there are no lists of
 * pieces, and a sink that has enough ids stops the whole chain.
 *
 * A step finds matches (of a pattern, a string or a class of characters) and the gaps between them. Its behavior says how both
 * become parts: isolated, removed, merged with a neighbour, or joined into runs. */
#define _GNU_SOURCE /* memmem */
#include "text/text.h"
#include <string.h>

lr_pretokenizer_step *lr_pretokenizer_add(lr_pretokenizer *p, int (*run)(lr_split *s, size_t size),
                                          lr_behavior behavior)
{
    if (lr_reserve((void **)&p->steps, &p->cap, p->count + 1, sizeof p->steps[0]) != LR_OK)
        return NULL;
    lr_pretokenizer_step *s = &p->steps[p->count++];
    *s = (lr_pretokenizer_step){.run = run, .behavior = behavior};
    return s;
}

/* ---- from matches to parts ------------------------------------------------------------------------------------------- */
static int run_step(const lr_pretokenizer *p, size_t index, lr_text_work *work, const lr_word_sink *sink,
                    const char *text, size_t size);

static inline int pass_on(lr_split *s, size_t begin, size_t end)
{
    return begin == end ? LR_OK : run_step(s->chain, s->step + 1, s->work, s->sink, s->text + begin, end - begin);
}

static int pass_on_waiting(lr_split *s)
{
    if (!s->waiting)
        return LR_OK;
    s->waiting = false;
    return pass_on(s, s->begin, s->end);
}

/* Takes the next stretch of the piece, a match or a gap. */
int lr_split_stretch(lr_split *s, size_t begin, size_t end, bool match)
{
    const lr_pretokenizer_step *step = &s->chain->steps[s->step];
    match = match != step->invert;
    bool join = false;
    switch (step->behavior) {
    case LR_ISOLATED:
        return pass_on(s, begin, end);
    case LR_REMOVED:
        return match ? LR_OK : pass_on(s, begin, end);
    case LR_CONTIGUOUS:
        join = match == s->was_match;
        break;
    case LR_MERGED_WITH_PREVIOUS:
        join = match && !s->was_match;
        break;
    case LR_MERGED_WITH_NEXT: /* only a match waits for a gap */
        join = !match && s->was_match;
        break;
    }
    s->was_match = match;
    if (join && s->waiting) {
        s->end = end;
        return LR_OK;
    }
    const int status = pass_on_waiting(s);
    s->begin = begin;
    s->end = end;
    s->waiting = true;
    return status;
}

/* ---- the steps -------------------------------------------------------------------------------------------------------- */
int lr_split_class(lr_split *s, size_t size)
{
    const int class = s->chain->steps[s->step].class;
    const char *p = s->text, *const end = s->text + size;
    size_t done = 0;
    int status = LR_OK;
    while (p < end && status == LR_OK) {
        const char *at = p;
        if (!lr_char_is(lr_utf8_next(&p), class))
            continue;
        const size_t begin = (size_t)(at - s->text);
        if (begin > done)
            status = lr_split_stretch(s, done, begin, false);
        done = (size_t)(p - s->text);
        if (status == LR_OK)
            status = lr_split_stretch(s, begin, done, true);
    }
    return status == LR_OK && done < size ? lr_split_stretch(s, done, size, false) : status;
}

int lr_split_string(lr_split *s, size_t size)
{
    const lr_pretokenizer_step *step = &s->chain->steps[s->step];
    size_t done = 0;
    int status = LR_OK;
    while (status == LR_OK) {
        const char *at = memmem(s->text + done, size - done, step->string, step->string_size);
        if (at == NULL)
            break;
        const size_t begin = (size_t)(at - s->text);
        if (begin > done)
            status = lr_split_stretch(s, done, begin, false);
        done = begin + step->string_size;
        if (status == LR_OK)
            status = lr_split_stretch(s, begin, done, true);
    }
    return status == LR_OK && done < size ? lr_split_stretch(s, done, size, false) : status;
}

int lr_split_regex(lr_split *s, size_t size)
{
    lr_regex_search search;
    size_t done = 0, begin, end;
    int status = LR_OK;
    lr_regex_start(&search, &s->chain->steps[s->step].regex, s->text, size);
    while (status == LR_OK) {
        const int found = lr_regex_next(&search, &s->work->matcher, &begin, &end);
        if (found < 0)
            return found;
        if (found == 0)
            break;
        if (begin > done)
            status = lr_split_stretch(s, done, begin, false);
        if (status == LR_OK)
            status = lr_split_stretch(s, begin, end, true);
        done = end;
    }
    return status == LR_OK && done < size ? lr_split_stretch(s, done, size, false) : status;
}

int lr_split_word_runs(lr_split *s, size_t size)
{
    const char *p = s->text, *const end = s->text + size;
    int status = LR_OK;
    while (p < end && status == LR_OK) {
        const char *begin = p, *stop = p;
        const int first = lr_char_classes[lr_utf8_next(&p)] & (LR_CHAR_WORD | LR_CHAR_SPACE);
        for (stop = p; p < end; stop = p)
            if ((lr_char_classes[lr_utf8_next(&p)] & (LR_CHAR_WORD | LR_CHAR_SPACE)) != first)
                break;
        p = stop;
        if (!(first & LR_CHAR_SPACE))
            status = pass_on(s, (size_t)(begin - s->text), (size_t)(stop - s->text));
    }
    return status;
}

int lr_split_prefix_space(lr_split *s, size_t size)
{
    if (*s->text == ' ')
        return pass_on(s, 0, size);
    lr_string *out = &s->work->spaced;
    out->size = 0;
    int status = lr_string_append(out, " ", 1);
    if (status == LR_OK)
        status = lr_string_append(out, s->text, size);
    s->text = out->data;
    return status == LR_OK ? pass_on(s, 0, size + 1) : status;
}

/* ---- the chain -------------------------------------------------------------------------------------------------------- */
static int run_step(const lr_pretokenizer *p, size_t index, lr_text_work *work, const lr_word_sink *sink,
                    const char *text, size_t size)
{
    if (index == p->count)
        return sink->word(sink->to, text, size);
    lr_split s = {p, index, work, sink, text, 0, 0, false, false};
    const int status = p->steps[index].run(&s, size);
    return status == LR_OK ? pass_on_waiting(&s) : status;
}

int lr_pretokenizer_run(const lr_pretokenizer *p, lr_text_work *work, const lr_word_sink *sink, const char *text,
                        size_t size)
{
    return run_step(p, 0, work, sink, text, size);
}
