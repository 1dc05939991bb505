"""Triton's interpreter, without what it does again at every call of a device function.

It replaces the builtins of triton.language at each, and looks for them among all members of five namespaces, which
takes longer than most functions themselves; which members are builtins never changes. So it is with the table from
Triton's types to NumPy's.
"""

from __future__ import annotations

import inspect


def speed_up() -> None:
    """Replaces two functions of triton.runtime.interpreter by faster ones with the same results."""
    import triton.language as tl
    from triton.runtime import interpreter

    spaces = tl, tl.core, tl.tensor, tl.core.tensor, tl.math, tl.core.tensor_descriptor_base
    builtins = {id(s): [n for n, member in inspect.getmembers(s) if tl.core.is_builtin(member)] for s in spaces}
    look_for_builtins = interpreter._patch_builtin

    def patch_builtin(pkg, builder, scope):
        if id(pkg) not in builtins:
            look_for_builtins(pkg, builder, scope)
            return
        for name in builtins[id(pkg)]:
            member = getattr(pkg, name)
            if tl.core.is_builtin(member):
                interpreter._patch_attr(pkg, name, member, builder, scope)

    types = {t: interpreter._get_np_dtype(t) for t in vars(tl).values() if type(t) is tl.dtype and t.name != "void"}
    look_up, pointer = interpreter._get_np_dtype, interpreter._get_np_dtype(tl.pointer_type(tl.int8))

    def get_np_dtype(tt_dtype):
        element = tt_dtype.element_ty if isinstance(tt_dtype, tl.block_type) else tt_dtype
        if isinstance(element, tl.pointer_type):
            return pointer
        return types[element] if element in types else look_up(tt_dtype)

    interpreter._patch_builtin, interpreter._get_np_dtype = patch_builtin, get_np_dtype
