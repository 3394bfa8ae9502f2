"""The words of four_bit_layout turned into numbers inside kernels, by PTX on the card, by shifts in the interpreter.

Integers: (w & 0x000f000f) | 0x4c004c00 is the fp16 pair 16 + q / 64 by one lop3, (w & 0x00f000f0) | 0x3c003c00 is
1 + q / 64; less 16.125 or 1.125 both are exactly (q - 8) / 64. One more shift by 8 reaches the other two pairs. Four
products of a pair are summed in fp16 (in 1/64: 65504 is reached by no |x| below that), two words a sum, then in fp32.
For tensor cores 0x43004300 makes bf16 pairs 128 + q, exact in eight bits.

NormalFloat: a prmt looks four bytes up among eight; low and high bytes of entries 0-7 and of 8-15, a prmt by bit 3
to choose, a prmt to interleave: 21 integer instructions a word.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.packing import NF4_TABLE

LANES = 32
INT4_UNIT = tl.constexpr(64.0)
NF4_UNIT = tl.constexpr(8.0)
"""What the pair products below are multiplied by at the end"""


def nf4_registers(device: torch.device) -> Tensor:
    """[16, 32] int32: low then high bytes of the table / 8 in fp16, four entries a word, then the same in bf16.

    Each 32 times, one a lane: what ptxas knows to be uniform (constants, loads from one address) it keeps in uniform
    registers and moves to a lane's again for every prmt, 8 more instructions of 36 a word.
    """
    words = []
    for values, dtype in ((tuple(v / 8 for v in NF4_TABLE), torch.float16), (NF4_TABLE, torch.bfloat16)):
        halves = torch.tensor(values).to(dtype).view(torch.uint8).view(16, 2)
        words.append(halves.T.contiguous().view(torch.int32).flatten())
    return torch.cat(words)[:, None].repeat(1, LANES).to(device)


def _lookup(word: str, out: str, first: int) -> str:
    """PTX: the eight values of a word as pairs out0..out3, from the table in operands `first` and on."""
    low, high = ([f"${first + 4 * part + i}" for i in range(4)] for part in range(2))
    lines = [
        f"and.b32 s, {word}, 0x77777777;",
        f"shr.b32 m, {word}, 1;",
        "lop3.b32 m, m, 0x44444444, 0x32103210, 0xea;",
    ]
    for half in range(2):
        if half:
            lines += ["shr.b32 s, s, 16;", "shr.b32 m, m, 16;"]
        for table, result in ((low, "a"), (high, "b")):
            lines += [
                f"prmt.b32 c, {table[0]}, {table[1]}, s;",
                f"prmt.b32 d, {table[2]}, {table[3]}, s;",
                f"prmt.b32 {result}, c, d, m;",
            ]
        lines += [f"prmt.b32 {out}{2 * half}, a, b, 0x5140;", f"prmt.b32 {out}{2 * half + 1}, a, b, 0x7362;"]
    return "\n".join(lines)


def _sums(first_x: list[int]) -> str:
    """PTX: r (fp16 pair) = products of pairs v0..v3 with operands, started or continued."""
    return "\n".join(f"fma.rn.f16x2 r, v{p}, ${x}, r;" for p, x in enumerate(first_x))


def _int4_pairs(word: str) -> str:
    return f"""
        shr.b32 t, {word}, 8;
        lop3.b32 v0, {word}, 0x000f000f, 0x4c004c00, 0xea;
        lop3.b32 v1, {word}, 0x00f000f0, 0x3c003c00, 0xea;
        lop3.b32 v2, t, 0x000f000f, 0x4c004c00, 0xea;
        lop3.b32 v3, t, 0x00f000f0, 0x3c003c00, 0xea;
        add.rn.f16x2 v0, v0, low;
        add.rn.f16x2 v1, v1, high;
        add.rn.f16x2 v2, v2, low;
        add.rn.f16x2 v3, v3, high;
    """


_INT4_SETUP = ".reg .b32 t, low, high; mov.b32 low, 0xcc08cc08; mov.b32 high, 0xbc80bc80;"
_NF4_SETUP = ".reg .b32 s, m, a, b, c, d;\n"
_END = "mov.b32 {i, j}, r; cvt.f32.f16 f, i; cvt.f32.f16 g, j; add.f32 $0, f, g; }"
_START = "{ .reg .b32 v<4>, r; .reg .b16 i, j; .reg .f32 f, g; mov.b32 r, 0;\n"


def _gemv_asm(setup: str, decode: list[str], operands: list[list[int]]) -> str:
    return _START + setup + "".join(d + "\n" + _sums(x) + "\n" for d, x in zip(decode, operands, strict=True)) + _END


_TWO = [[3, 4, 5, 6], [7, 8, 9, 10]]
_ONE = [[2, 3, 4, 5]]
INT4_TWO = tl.constexpr(_gemv_asm(_INT4_SETUP, [_int4_pairs("$1"), _int4_pairs("$2")], _TWO))
INT4_ONE = tl.constexpr(_gemv_asm(_INT4_SETUP, [_int4_pairs("$1")], _ONE))
NF4_TWO = tl.constexpr(_gemv_asm(_NF4_SETUP, [_lookup("$1", "v", 11), _lookup("$2", "v", 11)], _TWO))
NF4_ONE = tl.constexpr(_gemv_asm(_NF4_SETUP, [_lookup("$1", "v", 6)], _ONE))

_OUT_HALVES = "".join(f"mov.b32 {{${2 * p}, ${2 * p + 1}}}, v{p};\n" for p in range(4)) + "}"


def _bf16_int4(offset: str) -> str:
    decode = f"shr.b32 t, $8, 4; shr.b32 u, $8, 8; shr.b32 w, $8, 12; mov.b32 z, {offset};\n"
    for p, source in enumerate(("$8", "t", "u", "w")):
        decode += f"lop3.b32 v{p}, {source}, 0x000f000f, 0x43004300, 0xea;\n"
        decode += f"sub.rn.bf16x2 v{p}, v{p}, z;\nmul.rn.bf16x2 v{p}, v{p}, $9;\n"
    return "{ .reg .b32 v<4>, t, u, w, z;\n" + decode + _OUT_HALVES


def _bf16_nf4() -> str:
    scaled = "".join(f"mul.rn.bf16x2 v{p}, v{p}, $9;\n" for p in range(4))
    return "{ .reg .b32 v<4>;\n" + _NF4_SETUP + _lookup("$8", "v", 10) + "\n" + scaled + _OUT_HALVES


BF16_INT4 = tl.constexpr(_bf16_int4("0x43084308"))
"""$0..$7 = (q - 8) * scale of word $8 in bf16, $9 the scale twice"""
BF16_INT4_ZEROS = tl.constexpr(_bf16_int4("$10"))
"""$10 = 128 + zero twice"""
BF16_NF4 = tl.constexpr(_bf16_nf4())
"""$10..$17 the table in bf16"""

HALVES_CONSTRAINTS = tl.constexpr(",".join(["=h"] * 8) + ",r,r")
HALVES_ZEROS_CONSTRAINTS = tl.constexpr(",".join(["=h"] * 8) + ",r,r,r")
HALVES_NF4_CONSTRAINTS = tl.constexpr(",".join(["=h"] * 8) + ",r,r" + ",r" * 8)


@triton.jit
def nibble(words, p: tl.constexpr, e: tl.constexpr, NF4: tl.constexpr):
    """Codes of k = 32u + 8p + 2t + e, int32."""
    if NF4:
        return (words >> (8 * p + 4 * e)) & 15
    return (words >> (4 * p + 16 * e)) & 15


@triton.jit
def value(codes, NF4: tl.constexpr):
    """fp32 value of codes: the code - 8, or the table's entry."""
    if NF4:
        return _nf4_value(codes)
    return codes.to(tl.float32) - 8.0


@triton.jit
def _nf4_value(q):
    low = tl.where(
        q < 4,
        tl.where(
            q < 2,
            tl.where(q == 0, -1.0, -0.6961928009986877),
            tl.where(q == 2, -0.5250730514526367, -0.39491748809814453),
        ),
        tl.where(
            q < 6,
            tl.where(q == 4, -0.28444138169288635, -0.18477343022823334),
            tl.where(q == 6, -0.09105003625154495, 0.0),
        ),
    )
    high = tl.where(
        q < 12,
        tl.where(
            q < 10,
            tl.where(q == 8, 0.07958029955625534, 0.16093020141124725),
            tl.where(q == 10, 0.24611230194568634, 0.33791524171829224),
        ),
        tl.where(
            q < 14,
            tl.where(q == 12, 0.44070982933044434, 0.5626170039176941),
            tl.where(q == 14, 0.7229568362236023, 1.0),
        ),
    )
    return tl.where(q < 8, low, high)


@triton.jit
def fp16_pair(low, high, ASM: tl.constexpr):
    """Two fp32 as an fp16 pair in an int32, low in the low half."""
    if ASM:
        return tl.inline_asm_elementwise(
            "cvt.rn.f16x2.f32 $0, $1, $2;", "=r,f,f", [high, low], dtype=tl.int32, is_pure=True, pack=1
        )
    bits_low = low.to(tl.float16).to(tl.int16, bitcast=True).to(tl.int32) & 0xFFFF
    return bits_low | (high.to(tl.float16).to(tl.int16, bitcast=True).to(tl.int32) << 16)


@triton.jit
def load_table(table, first: tl.constexpr, lane, NF4: tl.constexpr):
    """Eight registers of nf4_registers, from `first`, the copies of `lane`; nothing for integers."""
    if NF4:
        at = table + first * 32 + lane
        low = (tl.load(at), tl.load(at + 32), tl.load(at + 64), tl.load(at + 96))
        high = (tl.load(at + 128), tl.load(at + 160), tl.load(at + 192), tl.load(at + 224))
        return low + high
    else:  # noqa: RET505 - the compiler wants one return type a branch taken
        return (0,)


@triton.jit
def one_word(word, x, table, NF4: tl.constexpr, ASM: tl.constexpr):
    """Sum over a word's eight values times x (four fp16 pairs), over INT4_UNIT or NF4_UNIT; fp32."""
    if ASM:
        if NF4:
            return tl.inline_asm_elementwise(
                NF4_ONE,
                "=f,r,r,r,r,r,r,r,r,r,r,r,r,r",
                [word, x[0], x[1], x[2], x[3],
                 table[0], table[1], table[2], table[3], table[4], table[5], table[6], table[7]],
                dtype=tl.float32,
                is_pure=True,
                pack=1,
            )  # fmt: skip
        return tl.inline_asm_elementwise(
            INT4_ONE,
            "=f,r,r,r,r,r",
            [word, x[0], x[1], x[2], x[3]],
            dtype=tl.float32,
            is_pure=True,
            pack=1,
        )
    total = (
        _pair(word, x[0], 0, NF4) + _pair(word, x[1], 1, NF4) + _pair(word, x[2], 2, NF4) + _pair(word, x[3], 3, NF4)
    )
    return total / (NF4_UNIT if NF4 else INT4_UNIT)


@triton.jit
def two_words(first, second, x, y, table, NF4: tl.constexpr, ASM: tl.constexpr):
    """The sum of two words in one."""
    if ASM:
        if NF4:
            return tl.inline_asm_elementwise(
                NF4_TWO,
                "=f,r,r,r,r,r,r,r,r,r,r,r,r,r,r,r,r,r,r",
                [first, second, x[0], x[1], x[2], x[3], y[0], y[1], y[2], y[3],
                 table[0], table[1], table[2], table[3], table[4], table[5], table[6], table[7]],
                dtype=tl.float32,
                is_pure=True,
                pack=1,
            )  # fmt: skip
        return tl.inline_asm_elementwise(
            INT4_TWO,
            "=f,r,r,r,r,r,r,r,r,r,r",
            [first, second, x[0], x[1], x[2], x[3], y[0], y[1], y[2], y[3]],
            dtype=tl.float32,
            is_pure=True,
            pack=1,
        )
    return one_word(first, x, table, NF4, ASM) + one_word(second, y, table, NF4, ASM)


@triton.jit
def _pair(word, x, p: tl.constexpr, NF4: tl.constexpr):
    low = (x & 0xFFFF).to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)
    high = (x >> 16).to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)
    return value(nibble(word, p, 0, NF4), NF4) * low + value(nibble(word, p, 1, NF4), NF4) * high


@triton.jit
def bf16_values(words, scale, zero, table, NF4: tl.constexpr, ZEROS: tl.constexpr, ASM: tl.constexpr):
    """(code - 8 - zero) * scale, or entry * scale, of a word's eight nibbles: bf16, (p, e) in order 00 01 10 11 20 ..

    scale and zero have words' shape; by PTX the scale is rounded to bf16 first.
    """
    if ASM:
        bits = scale.to(tl.bfloat16).to(tl.int16, bitcast=True).to(tl.int32) & 0xFFFF
        twice = bits | (bits << 16)
        types: tl.constexpr = (tl.bfloat16,) * 8
        if NF4:
            return tl.inline_asm_elementwise(
                BF16_NF4, HALVES_NF4_CONSTRAINTS,
                [words, twice, table[0], table[1], table[2], table[3], table[4], table[5], table[6], table[7]],
                dtype=types, is_pure=True, pack=1,
            )  # fmt: skip
        if ZEROS:
            offset = 0x43084308 + zero.to(tl.int32) * 0x00010001
            return tl.inline_asm_elementwise(
                BF16_INT4_ZEROS, HALVES_ZEROS_CONSTRAINTS, [words, twice, offset], dtype=types, is_pure=True, pack=1
            )
        return tl.inline_asm_elementwise(
            BF16_INT4, HALVES_CONSTRAINTS, [words, twice], dtype=types, is_pure=True, pack=1
        )
    return (
        _bf16(words, scale, zero, 0, 0, NF4), _bf16(words, scale, zero, 0, 1, NF4),
        _bf16(words, scale, zero, 1, 0, NF4), _bf16(words, scale, zero, 1, 1, NF4),
        _bf16(words, scale, zero, 2, 0, NF4), _bf16(words, scale, zero, 2, 1, NF4),
        _bf16(words, scale, zero, 3, 0, NF4), _bf16(words, scale, zero, 3, 1, NF4),
    )  # fmt: skip


@triton.jit
def _bf16(words, scale, zero, p: tl.constexpr, e: tl.constexpr, NF4: tl.constexpr):
    return ((value(nibble(words, p, e, NF4), NF4) - zero) * scale).to(tl.bfloat16)
