#!/usr/bin/env python3
"""terminal_svg.py: runs a command on a terminal of its own and draws what it shows at the end, as an SVG for the documentation.

    tools/terminal_svg.py --columns 134 docs/run.svg -- build/lorarun recipes/bugdetect.lua --max-steps 100

Lines that the command redrew (a progress bar) are drawn as they were last, longer ones than the terminal are wrapped. Of the
terminal's language only what lorarun writes is understood: carriage return, line feed, tab, erase line. The user's home folder is
drawn as ~. Only Python's own library is needed.

    --shown TEXT         drawn after the prompt in place of the command's words
    --lines A-B[,C-D]    draws these lines of the output only, counted from 1, and says how many are left out
    --record FILE        keeps the output's bytes; --replay FILE draws such a file, and runs nothing
"""
import argparse
import fcntl
import html
import os
import pty
import re
import shlex
import struct
import sys
import termios

CELL, LINE, SIZE, MARGIN, TITLE = 8, 18, 13, 16, 34  # pixels: width of a character, height of a line, font, around, above


def run(command, columns):
    """The command's output on a terminal, and its exit status."""
    pid, terminal = pty.fork()
    if pid == 0:
        fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
        os.environ.update(TERM="xterm", LC_ALL="C.UTF-8")
        os.execvp(command[0], command)
    output = b""
    while True:
        try:
            piece = os.read(terminal, 65536)
        except OSError:  # the other side is closed
            break
        if not piece:
            break
        output += piece
        sys.stdout.buffer.write(piece)
        sys.stdout.flush()
    return output.decode(), os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def screen(text):
    """The lines that stand on a terminal which was sent this text."""
    lines, column = [[]], 0
    for token in re.findall(r"\x1b\[[0-9;]*[A-Za-z]|.", text, re.S):
        line = lines[-1]
        if token == "\n":
            lines.append([])
        elif token == "\r":
            column = 0
        elif token == "\x1b[K":
            del line[column:]
        elif token[0] == "\x1b":
            sys.exit(f"terminal_svg: {token!r} is not understood")
        else:
            width = 8 - column % 8 if token == "\t" else 1
            line.extend(" " * (column + width - len(line)))
            line[column:column + width] = " " * width if token == "\t" else token
            column += width
        if token == "\n":
            column = 0
    lines = ["".join(line).rstrip() for line in lines]
    while lines and not lines[-1]:
        lines.pop()
    return lines


def draw(lines, columns, title):
    """lines: (class, text), the class one of the style's."""
    width, height = columns * CELL + 2 * MARGIN, len(lines) * LINE + 2 * MARGIN + TITLE
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height}" viewBox="0 0 {width:.0f} {height}" '
           f'role="img" aria-label="{html.escape(title)}">',
           "<style>text { font: %dpx Consolas, Menlo, 'DejaVu Sans Mono', monospace; fill: #d7dae0 }"
           " .command { fill: #9ccc8a; font-weight: bold } .title, .left { fill: #8a919e }</style>" % SIZE,
           f'<rect width="100%" height="100%" rx="8" fill="#20242c"/><rect width="100%" height="{TITLE}" rx="8" fill="#2b303a"/>',
           f'<text class="title" x="{MARGIN}" y="{TITLE * 0.65:.0f}">{html.escape(title)}</text>']
    for number, (kind, text) in enumerate(lines):
        if text:
            y = TITLE + MARGIN + number * LINE + SIZE
            out.append(f'<text class="{kind}" x="{MARGIN}" y="{y}" textLength="{len(text) * CELL:.1f}" '
                       f'lengthAdjust="spacingAndGlyphs" xml:space="preserve">{html.escape(text)}</text>')
    return "\n".join(out + ["</svg>", ""])


def chosen(lines, ranges):
    """The lines in the ranges, with a line in place of those between them."""
    result, done = [], 0
    for words in (ranges or f"1-{len(lines)}").split(","):
        first, last = map(int, words.split("-"))
        if first > done + 1:
            result.append(("left", f"    ... {first - done - 1} lines"))
        result += [("text", text) for text in lines[first - 1:last]]
        done = last
    if done < len(lines):
        result.append(("left", f"    ... {len(lines) - done} lines"))
    return result


def main():
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("file")
    words.add_argument("--columns", type=int, default=110)
    words.add_argument("--shown")
    words.add_argument("--title", default="lorarun")
    words.add_argument("--lines")
    words.add_argument("--record")
    words.add_argument("--replay")
    words.add_argument("command", nargs="*")
    given = words.parse_args()
    if given.replay:
        with open(given.replay, encoding="utf-8", newline="") as file:
            output = file.read()
    else:
        output, status = run(given.command, given.columns)
        if status != 0:
            sys.exit(f"terminal_svg: the command ended with status {status}; nothing was drawn")
    if given.record:
        with open(given.record, "w", encoding="utf-8", newline="") as file:
            file.write(output)
    lines = [("command", "$ " + (given.shown or shlex.join(given.command)))]
    for kind, text in chosen(screen(output.replace(os.path.expanduser("~") + "/", "~/")), given.lines):
        lines += [(kind, text[at:at + given.columns]) for at in range(0, max(len(text), 1), given.columns)]
    with open(given.file, "w", encoding="utf-8") as file:
        file.write(draw(lines, given.columns, given.title))


main()
