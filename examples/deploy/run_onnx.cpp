// Scores images with a model that `cfa export --with-resize` wrote, through ONNX Runtime's C API.
//
//     g++ -std=c++17 -O2 run_onnx.cpp -o run_onnx -I "$ROOT/include" -L "$ROOT/lib" -lonnxruntime
//     ./run_onnx model.onnx image.ppm ...
//
// ROOT is an unpacked release of ONNX Runtime; on Debian 13 and Ubuntu 25.04 `apt install libonnxruntime-dev` will do
// (-I /usr/include/onnxruntime). Images are binary PPM, as a stand-in for a camera's buffer: RGB, 8 bit, row by row.

#include <onnxruntime_c_api.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <string>
#include <vector>

namespace {

const OrtApi* api = OrtGetApiBase()->GetApi(ORT_API_VERSION);

void check(OrtStatus* status) {
    if (status == nullptr) return;
    std::fprintf(stderr, "Error: %s\n", api->GetErrorMessage(status));
    std::exit(1);
}

struct Image {
    int64_t height, width;
    std::vector<uint8_t> pixels;  // height x width x 3, RGB
};

Image read_ppm(const char* path) {
    std::ifstream file(path, std::ios::binary);
    std::string magic;
    int64_t width = 0, height = 0, most = 0;
    file >> magic >> width >> height >> most;
    file.get();
    if (!file || magic != "P6" || most != 255 || width < 1 || height < 1 || width > 65536 || height > 65536) {
        std::fprintf(stderr, "Error: %s is no 8-bit binary PPM\n", path);
        std::exit(1);
    }
    Image image{height, width, std::vector<uint8_t>(height * width * 3)};
    if (!file.read(reinterpret_cast<char*>(image.pixels.data()), image.pixels.size())) {
        std::fprintf(stderr, "Error: %s is cut off\n", path);
        std::exit(1);
    }
    return image;
}

}  // namespace

int main(int count, char** arguments) {
    if (count < 3) {
        std::fprintf(stderr, "Usage: %s model.onnx image.ppm ...\n", arguments[0]);
        return 2;
    }
    OrtEnv* env = nullptr;
    OrtSessionOptions* options = nullptr;
    OrtSession* session = nullptr;
    OrtMemoryInfo* memory = nullptr;
    check(api->CreateEnv(ORT_LOGGING_LEVEL_ERROR, "cfa", &env));
    check(api->CreateSessionOptions(&options));
    check(api->CreateSession(env, arguments[1], options, &session));
    check(api->CreateCpuMemoryInfo(OrtArenaAllocator, OrtMemTypeDefault, &memory));

    const char* inputs[] = {"images"};
    const char* outputs[] = {"score", "threshold", "pixel_threshold", "map"};
    for (int i = 2; i < count; ++i) {
        Image image = read_ppm(arguments[i]);
        const int64_t shape[] = {1, image.height, image.width, 3};
        OrtValue* tensor = nullptr;
        OrtValue* results[4] = {};
        check(api->CreateTensorWithDataAsOrtValue(memory, image.pixels.data(), image.pixels.size(), shape, 4,
                                                  ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8, &tensor));
        check(api->Run(session, nullptr, inputs, &tensor, 1, outputs, 4, results));

        float* values[4];  // score (1), threshold (), pixel threshold (), map (1, height, width) at the network's size
        for (int k = 0; k < 4; ++k) check(api->GetTensorMutableData(results[k], reinterpret_cast<void**>(&values[k])));
        OrtTensorTypeAndShapeInfo* info = nullptr;
        size_t pixels = 0, marked = 0;
        check(api->GetTensorTypeAndShape(results[3], &info));
        check(api->GetTensorShapeElementCount(info, &pixels));
        for (size_t k = 0; k < pixels; ++k) marked += values[3][k] > *values[2];

        std::printf("%-10s%12.6g  %5.1f %% marked  %s\n", *values[0] > *values[1] ? "anomalous" : "good", *values[0],
                    100.0 * marked / pixels, arguments[i]);
        api->ReleaseTensorTypeAndShapeInfo(info);
        for (OrtValue* result : results) api->ReleaseValue(result);
        api->ReleaseValue(tensor);
    }
    api->ReleaseMemoryInfo(memory);
    api->ReleaseSession(session);
    api->ReleaseSessionOptions(options);
    api->ReleaseEnv(env);
}
