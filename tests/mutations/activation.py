"""Bugs in the activation family."""

from mutations._mutation import planted_in

PLAIN = ("gelu", "silu", "relu", "relu_squared")
GATED = ("swiglu", "geglu", "reglu", "glu")
BIASED = (*PLAIN, "swiglu", "geglu", "reglu")

MUTATIONS = [
    *planted_in("csrc/cpu/activation.cpp",
         *((op, "skip the gate's bias", "if (gate_bias != nullptr) x += load(gate_bias + i, n);\n      Vec<A> value",
            "Vec<A> value") for op in BIASED),
         *((op, "lose the gradient of the second factor", "const Vec<A> du = dy * value_of<T>(form, x);",
            "const Vec<A> du = dy;") for op in GATED),
         *((op, "let gradients pass zeros", "return x <= A(0) ? Vec<A>{} : g;", "return g;")
           for op in ("relu", "relu_squared", "reglu")),
         ("swiglu", "wrong piece of a long row", "first = index % per_row * kPiece;", "first = 0 * per_row;")),
    *planted_in("csrc/cuda/activation/glu.cu",
         *((op, "skip the bias", "const float value = value_of(form, to_float(gate.values[i]) + gate_bias.values[i]);",
            "const float value = value_of(form, to_float(gate.values[i]));") for op in BIASED),
         *((op, "lose the gradient of the second factor", "const float du = gated ? dy * value_of(form, x) : 0.0f;",
            "const float du = gated ? dy : 0.0f;") for op in GATED),
         ("gelu", "sum a group twice", "gate_sums[i] += dx;", "gate_sums[i] += 2.0f * dx;"),
         ("swiglu", "drop the tail", "forward_pack<T, 1>(p, form, place.row, place.col + i);", ";")),
    *planted_in("triton_kernels/activation.py",
         *((op, "skip the bias", "        x += tl.load(gate_bias_ptr + col, mask, 0.0).to(ACC)\n    value",
            "        x += 0.0\n    value") for op in BIASED),
         *((op, "lose the gradient of the second factor", "du = dy * _value_of(x, ACTIVATION)", "du = dy")
           for op in GATED)),
    *planted_in("python/warpwright/reference/activation.py",
         *((op, "skip the bias", "return x if bias is None else x + bias", "return x") for op in BIASED),
         *((op, "lose the gradient of the second factor", "grad_up = dy * _value(activation, x)", "grad_up = dy")
           for op in GATED)),
]  # fmt: skip
