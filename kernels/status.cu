// Names and texts of the codes that launchers return, and the sizes of their parameters.
#include "attn/abi.h"
#include "attn/host.h"

namespace attn {
namespace {

struct StatusWords {
    int status;
    const char* name;
    const char* text;
};

constexpr StatusWords own_words[] = {
    {ATTN_OK, "ATTN_OK", "no error"},
    {ATTN_UNSUPPORTED, "ATTN_UNSUPPORTED", "no kernel for this head_dim, element type or form"},
    {ATTN_TENSOR_REFUSED, "ATTN_TENSOR_REFUSED",
     "a tensor's base or one of its strides is not a multiple of 16 bytes, or an axis is too long"},
    {ATTN_NO_TENSOR_MAPS, "ATTN_NO_TENSOR_MAPS",
     "the driver cannot describe tensors for the copy engine: it is older than CUDA 12.0"},
    {ATTN_SIM_FAULT, "ATTN_SIM_FAULT", "the host simulator found a fault"},
};

constexpr StatusWords unknown_words = {0, "ATTN_UNKNOWN", "a code that no launcher returns"};

// For codes that are not CUDA's.
const StatusWords& words_of(int status) {
    for (const StatusWords& words : own_words) {
        if (words.status == status) return words;
    }
    return unknown_words;
}

}  // namespace
}  // namespace attn

extern "C" const char* attn_status_name(int status) {
#ifndef ATTN_SIM
    if (status > 0) return cudaGetErrorName(static_cast<cudaError_t>(status));
#endif
    return attn::words_of(status).name;
}

extern "C" const char* attn_status_text(int status) {
#ifndef ATTN_SIM
    if (status > 0) return cudaGetErrorString(static_cast<cudaError_t>(status));
#endif
    return attn::words_of(status).text;
}

extern "C" size_t attn_abi_sizes(size_t* sizes, size_t room) {
    constexpr size_t own[] = {
        sizeof(AttnTensor),         sizeof(AttnRows),           sizeof(AttnMask),           sizeof(AttnAttention),
        sizeof(AttnSageTensors),    sizeof(AttnSage),           sizeof(AttnSageShard),      sizeof(AttnStateCall),
        sizeof(AttnCopy),           sizeof(AttnEdge),           sizeof(AttnExchangeBox),    sizeof(AttnExchangeReport),
        sizeof(AttnExchangeGroup),  sizeof(AttnExchange),       sizeof(AttnProbeWgmma),     sizeof(AttnProbeTma),
        sizeof(AttnProbePeak),
    };
    constexpr size_t count = sizeof(own) / sizeof(own[0]);
    for (size_t i = 0; i < count && i < room; ++i) sizes[i] = own[i];
    return count;
}
