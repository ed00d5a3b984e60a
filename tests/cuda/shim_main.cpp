// Runs cases through the C functions of arb/cuda.h on the host. Input and output are files of little-endian int64
// counts and arrays, written and read by tests/cuda/host.py. Every array lies in a heap block of its own exact size, so
// that AddressSanitizer sees its ends.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <vector>

#include "arb/cuda.h"

namespace {

std::FILE* in;
std::FILE* out;

int64_t number() {
    int64_t value = 0;
    if (std::fread(&value, 8, 1, in) != 1) std::exit(3);
    return value;
}

struct Array {
    std::unique_ptr<unsigned char[]> bytes;
    int64_t length = 0, size = 0;
};

// count, bytes per element, content; count -1: no array.
Array array() {
    Array a;
    const int64_t count = number(), width = number();
    if (count < 0) return a;
    a.length = count;
    a.size = count * width;
    a.bytes.reset(new unsigned char[static_cast<size_t>(a.size)]);
    if (a.size > 0 && std::fread(a.bytes.get(), static_cast<size_t>(a.size), 1, in) != 1) std::exit(3);
    return a;
}

void put(int status, const char* message, const void* data, size_t size) {
    const int64_t head[3] = {status, static_cast<int64_t>(std::strlen(message)), static_cast<int64_t>(size)};
    std::fwrite(head, sizeof(head), 1, out);
    std::fwrite(message, static_cast<size_t>(head[1]), 1, out);
    if (size > 0) std::fwrite(data, size, 1, out);
}

void run_case() {
    arb_cuda_weight w = {};
    int64_t* const sizes[] = {&w.rows,          &w.cols,     &w.block_size,     &w.groups,     &w.salient_groups,
                              &w.salient_order, &w.exponent, &w.shared_columns, &w.scale_type, &w.row_scale_type};
    for (int64_t* size : sizes) *size = number();
    arb_cuda_buffer* const parts[] = {&w.sign, &w.group,     &w.second,     &w.row_scale, &w.row_base,
                                      &w.mean, &w.col_scale, &w.col_scale2, &w.order,     &w.counts};
    std::vector<Array> arrays;
    for (arb_cuda_buffer* part : parts) {
        arrays.push_back(array());
        *part = {arrays.back().bytes.get(), arrays.back().length};
    }
    const int64_t x_type = number(), batch = number();
    const Array x = array();
    const size_t width = x_type == ARB_F32 ? 4 : 2;
    char message[200] = "";

    const size_t y_size = static_cast<size_t>(batch * w.rows) * width;
    const std::unique_ptr<unsigned char[]> y(new unsigned char[y_size]);
    std::memset(y.get(), 0xff, y_size);
    const int64_t bytes = arb_cuda_linear_workspace(&w, x_type, batch);
    const std::unique_ptr<unsigned char[]> workspace(new unsigned char[static_cast<size_t>(bytes < 0 ? 0 : bytes)]);
    int status =
        arb_cuda_linear(&w, x.bytes.get(), x_type, batch, y.get(), workspace.get(), bytes, nullptr, message, 200);
    put(status, message, y.get(), y_size);

    const size_t dense_size = static_cast<size_t>(w.rows * w.cols) * 4;
    const std::unique_ptr<unsigned char[]> dense(new unsigned char[dense_size]);
    std::memset(dense.get(), 0xff, dense_size);
    message[0] = 0;
    status = arb_cuda_dequantize(&w, reinterpret_cast<float*>(dense.get()), nullptr, message, 200);
    put(status, message, dense.get(), dense_size);
}

void run_bits() {
    const int64_t rows = number(), length = number();
    const Array bits = array();
    const size_t words = static_cast<size_t>(rows * ((length + 63) / 64 * 2));
    const std::unique_ptr<uint32_t[]> packed(new uint32_t[words]);
    const std::unique_ptr<uint8_t[]> back(new uint8_t[static_cast<size_t>(rows * length)]);
    char message[200] = "";
    int status = arb_cuda_pack_bits(bits.bytes.get(), rows, length, packed.get(), nullptr, message, 200);
    put(status, message, packed.get(), words * 4);
    status = arb_cuda_unpack_bits(packed.get(), rows, length, back.get(), nullptr, message, 200);
    put(status, message, back.get(), static_cast<size_t>(rows * length));
}

}  // namespace

int main(int argc, char** argv) {
    if (argc != 3) return 2;
    in = std::fopen(argv[1], "rb");
    out = std::fopen(argv[2], "wb");
    if (in == nullptr || out == nullptr) return 2;
    for (int64_t kind; std::fread(&kind, 8, 1, in) == 1;) {
        if (kind == 0) {
            run_case();
        } else {
            run_bits();
        }
    }
    return std::fclose(out);
}
