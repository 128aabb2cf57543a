// A fibre: a function with a stack of its own, which its caller resumes and which pauses itself.
#pragma once
#include <csetjmp>
#include <cstddef>

namespace attn::sim {

class Fibre {
  public:
    Fibre(void (*body)(void*), void* argument);
    ~Fibre();
    Fibre(const Fibre&) = delete;
    Fibre& operator=(const Fibre&) = delete;

    // From outside: runs the body until it pauses or returns. After it has returned, the next call begins it again.
    void resume();
    // From inside: goes back to the caller of resume.
    void pause();
    // From outside: forgets where the body stands. Its frames are not unwound; the next resume begins it again.
    void abandon() { started_ = false; }

  private:
    static void enter();
    void begin();

    void (*body_)(void*);
    void* argument_;
    char* stack_;
    size_t stagger_ = 0;
    bool started_ = false;
    std::jmp_buf inside_, outside_;
};

}  // namespace attn::sim
