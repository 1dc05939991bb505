"""Bugs in the dropout family."""

from mutations._mutation import planted_in

BOTH = ("dropout", "dropout_add")

MUTATIONS = [
    *planted_in("csrc/cpu/dropout.cpp",
         *((op, "one block of bits for a row", "(seed, row, (first + start) / kPhiloxWords, p.offset, words);",
            "(seed, row, 0, p.offset, words);") for op in BOTH),
         ("dropout_add", "skip the residual", "if (residual != nullptr) y += load(residual + i, n);", ";")),
    *planted_in("csrc/cpu/philox.h",
         ("dropout", "words out of order", "words[1] = interleave_high(even_low, odd_low);",
          "words[1] = interleave_high(odd_low, even_low);")),
    *planted_in("csrc/cuda/dropout/dropout_add.cu",
         *((op, "no rescaling", "? static_cast<float>(p.scale) : 0.0f", "? 1.0f : 0.0f") for op in BOTH)),
    *planted_in("triton_kernels/dropout.py",
         *((op, "the same bits for every block", "random_words(tl.load(seed_ptr), row, start, offset, BLOCK)",
            "random_words(tl.load(seed_ptr), row, start * 0, offset, BLOCK)") for op in BOTH)),
    *planted_in("python/warpwright/reference/dropout.py",
         *((op, "forget the offset", "cols, offset).reshape(input.shape)", "cols, 0).reshape(input.shape)")
           for op in BOTH)),
]  # fmt: skip
