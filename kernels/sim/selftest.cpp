// Claims about the simulator: for each kind of fault a tiny kernel that is reported, and its twin that passes.
//
//     g++ -std=c++17 -O1 -DATTN_SIM -I../include -I. *.cpp -o selftest -lpthread && ./selftest
#include "selftest/barriers.h"
#include "selftest/copies.h"
#include "selftest/products.h"
#include "selftest/system.h"
#include "selftest/threads.h"
#include "selftest/warp_products.h"

int main() {
    using namespace attn::selftest;
    test_numbers();
    test_tensor_maps();
    test_barriers();
    test_loads();
    test_stores();
    test_products();
    test_products8();
    test_copies();
    test_warp_products();
    test_warps();
    test_registers();
    test_launches();
    test_system();
    std::printf("%d claims, %d failed\n", claims, failures);
    return failures == 0 ? 0 : 1;
}
