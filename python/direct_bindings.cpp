// The native weight that every product of a packed weight shares (arbllm_kernels/cpu.py), and what the short way to it
// takes (direct.py). A small layer's arithmetic takes less time than ten lines of Python, so what has to be asked of
// torch before each product is asked from here: by the methods that Python would call, since the extension is built
// without torch.
#include <pybind11/stl.h>

#include <algorithm>
#include <array>
#include <vector>

#include "bindings.h"

namespace py = pybind11;

namespace {

// A new reference, or the exception that Python has set.
py::object checked(PyObject* made) {
    if (made == nullptr) throw py::error_already_set();
    return py::reinterpret_steal<py::object>(made);
}

// What is looked up once; never freed, since the interpreter may be gone by then.
struct Torch {
    py::object tensor_type = py::module_::import("torch").attr("Tensor");
    py::object float32 = py::module_::import("torch").attr("float32");
    py::object bfloat16 = py::module_::import("torch").attr("bfloat16");
    py::object float16 = py::module_::import("torch").attr("float16");
    py::object strided = py::module_::import("torch").attr("strided");
    py::object is_grad_enabled = py::module_::import("torch").attr("is_grad_enabled");
    py::object dispatch_modes = py::module_::import("torch").attr("_C").attr("_len_torch_dispatch_stack");
    py::object is_tracing = py::module_::import("torch").attr("_C").attr("_is_tracing");
    py::object transforms = py::module_::import("torch").attr("_C").attr("_are_functorch_transforms_active");
    py::object forward_ad = py::module_::import("torch.autograd.forward_ad");
    // Two helpers of the code that torch.compile writes: the address as C sees it, in a tenth of the method's time, and
    // a contiguous tensor in half of it. They are no public names, so the methods are there for a torch without them.
    void* (*data_ptr)(PyObject*) = compiled_data_ptr();
    py::object empty_strided = py::getattr(guards(), "_empty_strided_cpu", py::none());
    py::str method = intern("data_ptr");
    py::str dtype = intern("dtype"), shape = intern("shape"), is_cpu = intern("is_cpu"), layout = intern("layout");
    py::str is_contiguous = intern("is_contiguous"), requires_grad = intern("requires_grad");
    py::str version = intern("_version"), is_inference = intern("is_inference");
    py::str is_neg = intern("is_neg"), new_empty = intern("new_empty"), current_level = intern("_current_level");

    static py::object guards() { return py::module_::import("torch._C").attr("_dynamo").attr("guards"); }

    static void* (*compiled_data_ptr())(PyObject*) {
        constexpr const char* kName = "_torchinductor_pyobject_tensor_data_ptr";
        if (!py::hasattr(guards(), kName)) return nullptr;
        return reinterpret_cast<void* (*)(PyObject*)>(guards().attr(kName).cast<uintptr_t>());
    }

    static py::str intern(const char* name) { return py::reinterpret_steal<py::str>(PyUnicode_InternFromString(name)); }
};

const Torch& torch() {
    static const Torch* const names = new Torch;
    return *names;
}

py::object get(py::handle of, const py::str& name) { return checked(PyObject_GetAttr(of.ptr(), name.ptr())); }
py::object call(py::handle of, const py::str& method) {
    return checked(PyObject_CallMethodNoArgs(of.ptr(), method.ptr()));
}
py::object call(const py::object& function) { return checked(PyObject_CallNoArgs(function.ptr())); }
bool is_true(const py::object& value) { return value.ptr() == Py_True; }

uintptr_t address(py::handle tensor) {
    if (tensor.is_none()) return 0;
    if (torch().data_ptr != nullptr) return reinterpret_cast<uintptr_t>(torch().data_ptr(tensor.ptr()));
    return PyLong_AsSize_t(call(tensor, torch().method).ptr());
}

// Whether nothing but the product of x is wanted: no gradient, transform or mode that the dispatcher would see, and no
// sign that is still to be applied.
bool product_alone(py::handle x) {
    const Torch& t = torch();
    if (is_true(get(x, t.requires_grad)) && is_true(call(t.is_grad_enabled))) return false;
    if (is_true(call(x, t.is_neg))) return false;
    if (is_true(call(t.is_tracing))) return false;
    return PyLong_AsLong(call(t.dispatch_modes).ptr()) == 0 && !is_true(call(t.transforms)) &&
           PyLong_AsLong(get(t.forward_ad, t.current_level).ptr()) < 0;
}

using Limits = std::array<std::array<int64_t, 3>, 2>;

// A native weight and the tensors it was made from. It keeps them alive, but for the column order, which keeps it.
class Bound {
  public:
    // `repack`: as for arb::Weight, which then is of no use once a tensor has been written to.
    // `limits`: how many rows of x are too many for the packed kernels, in one, two and three digits; of x in bfloat16
    // apart.
    // `dense(x, order, view)` is the product of so many. `not_covered` is called where int8 activations are asked for
    // and the product is exact all the same.
    Bound(const py::tuple& args, const py::object& view, bool repack, const Limits& limits,
          const py::object& not_covered, const py::object& dense)
        : list_(args[args.size() - 1]),
          sizes_(sizes_of(args)),
          view_(view),
          weight_(view.cast<const arb::PackedView&>(), repack),
          repack_(repack),
          limits_(limits),
          not_covered_(not_covered),
          dense_(dense) {
        const bool copied = repack && arb::gains_by_copy(weight_.view());
        for (size_t i = 0; i + 1 < args.size(); ++i) {
            const py::object tensor = args[i];
            tensors_.push_back(i == kOrder ? py::object() : tensor);
            addresses_.push_back(address(tensor));
            // Tensors made under torch.inference_mode do not count what is written to them.
            const bool counts = copied && !tensor.is_none() && !is_true(call(tensor, torch().is_inference));
            versions_.push_back(counts ? version(tensor) : kNotCounted);
        }
    }

    // x [..., m] times the transposed weight, [..., n] in the dtype of x. None where x is not what it has to be or, if
    // the product has to be `alone`, where something else is wanted too. NotImplemented where `args` are no longer the
    // same sizes and memory with the same content, as far as torch counts, or `repack` is not what it was.
    py::object product(py::handle x, const py::tuple& args, bool int8, int64_t threads, bool repack, bool alone) {
        if (repack != repack_ || !fits(args)) return py::reinterpret_borrow<py::object>(Py_NotImplemented);
        const Torch& t = torch();
        if (alone && (reinterpret_cast<PyObject*>(Py_TYPE(x.ptr())) != t.tensor_type.ptr() || !product_alone(x)))
            return py::none();
        const py::object dtype = get(x, t.dtype), shape = get(x, t.shape);
        const bool is_float = dtype.is(t.float32), is_bf16 = dtype.is(t.bfloat16);
        if (!is_float && !is_bf16 && !dtype.is(t.float16)) return py::none();
        const auto dims = static_cast<Py_ssize_t>(PyTuple_GET_SIZE(shape.ptr()));
        const arb::PackedView& w = weight_.view();
        if (dims == 0 || size(shape, dims - 1) != w.cols) return py::none();
        int64_t batch = 1;
        for (Py_ssize_t i = 0; i + 1 < dims; ++i) batch *= size(shape, i);
        if (!is_true(get(x, t.is_cpu)) || !get(x, t.layout).is(t.strided) || !is_true(call(x, t.is_contiguous)))
            return py::none();
        const uintptr_t from = address(x);
        if (from == 0 && batch > 0) return py::none();  // a tensor of zeros that has no memory
        const auto element = is_float ? arb::Element::fp32 : is_bf16 ? arb::Element::bf16 : arb::Element::fp16;
        const auto activations = int8 ? arb::Activations::int8 : arb::Activations::exact;
        if (batch >= limits_[is_bf16][static_cast<size_t>(arb::digits_of(w, element, activations) - 1)])
            return dense_(x, args[kOrder], view_);
        const py::object y = empty_like_rows(x, dtype, shape, dims);
        if (int8 && !weight_.covers_int8()) call(not_covered_);
        gemm(weight_, from, element, batch, address(y), threads, activations);
        return y;
    }

  private:
    // [..., n] in the dtype of x, on the CPU.
    py::object empty_like_rows(py::handle x, const py::object& dtype, const py::object& shape, Py_ssize_t dims) const {
        const Torch& t = torch();
        const int64_t rows = weight_.view().rows;
        if (t.empty_strided.is_none()) {  // the sizes as numbers: torch takes half as long again to read a tuple
            std::vector<PyObject*> arguments{x.ptr()};
            for (Py_ssize_t i = 0; i + 1 < dims; ++i) arguments.push_back(PyTuple_GET_ITEM(shape.ptr(), i));
            const py::int_ last(rows);
            arguments.push_back(last.ptr());
            return checked(PyObject_VectorcallMethod(t.new_empty.ptr(), arguments.data(), arguments.size(), nullptr));
        }
        py::tuple sizes(dims), strides(dims);
        int64_t stride = 1;
        for (Py_ssize_t i = dims - 1; i >= 0; --i) {
            const int64_t here = i == dims - 1 ? rows : size(shape, i);
            PyTuple_SET_ITEM(sizes.ptr(), i, PyLong_FromLongLong(here));
            PyTuple_SET_ITEM(strides.ptr(), i, PyLong_FromLongLong(stride));
            stride *= std::max<int64_t>(here, 1);
        }
        PyObject* const made[] = {sizes.ptr(), strides.ptr(), dtype.ptr()};
        return checked(PyObject_Vectorcall(t.empty_strided.ptr(), made, 3, nullptr));
    }

    static int64_t size(const py::object& shape, Py_ssize_t i) {
        return PyLong_AsLongLong(PyTuple_GET_ITEM(shape.ptr(), i));
    }

    bool fits(const py::tuple& args) const {
        for (size_t i = 0; i < addresses_.size(); ++i) {
            // Not whether it is the same object: state_dict() makes others of the same memory, and of the same version.
            PyObject* const now = PyTuple_GET_ITEM(args.ptr(), static_cast<Py_ssize_t>(i));
            if (address(now) != addresses_[i]) return false;
            if (versions_[i] != kNotCounted && version(now) != versions_[i]) return false;
        }
        // A layer passes the same list each time.
        return list_.ptr() == PyTuple_GET_ITEM(args.ptr(), static_cast<Py_ssize_t>(addresses_.size())) ||
               sizes_of(args) == sizes_;
    }

    static std::vector<int64_t> sizes_of(const py::tuple& args) {
        return args[args.size() - 1].cast<std::vector<int64_t>>();
    }

    static constexpr size_t kOrder = 8;  // of the column order among the tensors
    static constexpr int64_t kNotCounted = -1;

    // How often a tensor has been written to.
    static int64_t version(py::handle tensor) { return PyLong_AsLongLong(get(tensor, torch().version).ptr()); }

    std::vector<py::object> tensors_;  // kept alive
    std::vector<uintptr_t> addresses_;
    std::vector<int64_t> versions_;
    py::object list_;
    std::vector<int64_t> sizes_;
    py::object view_;
    arb::Weight weight_;
    bool repack_;
    Limits limits_;
    py::object not_covered_, dense_;
};

}  // namespace

void register_direct(py::module_& m) {
    py::class_<Bound>(m, "Bound")
        .def(py::init<const py::tuple&, const py::object&, bool, const Limits&, const py::object&, const py::object&>())
        .def("product", &Bound::product)
        // Not copied, not pickled: made anew instead. Nothing, as torch.load accepts it.
        .def("__reduce__", [](const Bound&) {
            return py::make_tuple(py::module_::import("collections").attr("OrderedDict"), py::tuple());
        });
}
