"""Other spellings of AMX's functions: the same meanings in plain LLVM IR, on tiles in memory.

With them the loops around AMX run on any CPU with AVX-512 BF16. One thread at a time.
"""

from __future__ import annotations

from dataclasses import replace

from codegen.intrinsics import amx
from codegen.intrinsics.base import Intrinsic

STATE = """
@sw_tiles = internal global [8 x [16 x <16 x i32>]] zeroinitializer
@sw_tile_rows = internal global [8 x i32] zeroinitializer"""

CONFIG = (
    STATE
    + """
define i32 @sw_tile_config(i32 %low, i32 %high) {
  %r0 = insertelement <8 x i32> splat (i32 16), i32 %low, i32 0
  %r1 = insertelement <8 x i32> %r0, i32 %low, i32 1
  %r2 = insertelement <8 x i32> %r1, i32 %high, i32 2
  %r3 = insertelement <8 x i32> %r2, i32 %high, i32 3
  %r4 = insertelement <8 x i32> %r3, i32 %low, i32 4
  %r5 = insertelement <8 x i32> %r4, i32 %high, i32 5
  store <8 x i32> %r5, ptr @sw_tile_rows, align 4
  ret i32 0
}"""
)

RELEASE = """
define i32 @sw_tile_release() {
  store <8 x i32> zeroinitializer, ptr @sw_tile_rows, align 4
  ret i32 0
}"""

# BODY sees the row %r and the address %row of it in the tile.
LOOP = """
define i32 @NAME(PARAMETERS) {
entry:
  %size = getelementptr [8 x i32], ptr @sw_tile_rows, i64 0, i64 TILE
  %rows32 = load i32, ptr %size
  %rows = zext i32 %rows32 to i64
  br label %head
head:
  %r = phi i64 [ 0, %entry ], [ %next, %body ]
  %more = icmp ult i64 %r, %rows
  br i1 %more, label %body, label %done
body:
  %row = getelementptr [8 x [16 x <16 x i32>]], ptr @sw_tiles, i64 0, i64 TILE, i64 %rBODY
  %next = add i64 %r, 1
  br label %head
done:
  ret i32 0
}"""

LOAD = """
  %offset = mul i64 %r, %stride
  %from = getelementptr i8, ptr %p, i64 %offset
  %value = load <16 x i32>, ptr %from, align 4
  store <16 x i32> %value, ptr %row"""

STORE = """
  %offset = mul i64 %r, %stride
  %to = getelementptr i8, ptr %p, i64 %offset
  %value = load <16 x i32>, ptr %row
  store <16 x i32> %value, ptr %to, align 4"""


def loop(intrinsic: Intrinsic, parameters: str, tile: int, body: str) -> Intrinsic:
    text = LOOP.replace("NAME", intrinsic.name).replace("PARAMETERS", parameters)
    return replace(intrinsic, spelling=text.replace("TILE", str(tile)).replace("BODY", body))


def dot(intrinsic: Intrinsic) -> Intrinsic:
    """One word of K after the other, by the dot product of vectors."""
    _, _, _, kind, product = intrinsic.name.split("_")
    i, j = divmod(int(product), 2)
    element, function = ("float", "sw_mac_bf16") if kind == "bf16" else ("i32", "sw_dot_u8")
    vector = f"<16 x {element}>"
    lines = [f"  %c0 = load {vector}, ptr %row"]
    tile_a = f"@sw_tiles, i64 0, i64 {amx.rows_tile(i)}, i64 %r"
    tile_b = f"@sw_tiles, i64 0, i64 {amx.columns_tile(j)}"
    for k in range(amx.TILE_WORDS):
        lines += [
            f"  %pa{k} = getelementptr [8 x [16 x [16 x i32]]], ptr {tile_a}, i64 {k}",
            f"  %a{k} = load i32, ptr %pa{k}",
            f"  %pb{k} = getelementptr [8 x [16 x <16 x i32>]], ptr {tile_b}, i64 {k}",
            f"  %b{k} = load <16 x i32>, ptr %pb{k}",
            f"  %c{k + 1} = call {vector} @{function}({vector} %c{k}, i32 %a{k}, <16 x i32> %b{k})",
        ]
    lines.append(f"  store {vector} %c{amx.TILE_WORDS}, ptr %row")
    return loop(intrinsic, "", int(product), "\n" + "\n".join(lines))


def emulated(intrinsic: Intrinsic) -> Intrinsic:
    """The intrinsic with its meaning spelled out."""
    verb, *rest = intrinsic.name.removeprefix("sw_tile_").split("_")
    match verb:
        case "config":
            return replace(intrinsic, spelling=CONFIG)
        case "release":
            return replace(intrinsic, spelling=RELEASE)
        case "dot":
            return dot(intrinsic)
    body = LOAD if verb == "load" else STORE
    return loop(intrinsic, "ptr %p, i64 %stride", int(rest[0]), body)


SPELLINGS = tuple(emulated(intrinsic) for intrinsic in amx.SPELLINGS)
