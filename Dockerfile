# hourhand in a container: `worker`, `dashboard`, `migrate` or any other of its commands. docs/deployment.md says how.
# The base image is named to the patch, so that a build of today is the one of tomorrow.
ARG NODE=24.21.0-bookworm-slim

FROM docker.io/library/node:${NODE} AS build
WORKDIR /build/source
COPY package.json package-lock.json .npmrc ./
RUN npm ci --ignore-scripts
COPY . .
RUN npm run generate && npm run build
RUN npm prune --omit=dev --omit=optional --ignore-scripts && npm run slim
# What `npm pack` takes (package.json names it), and the packages beside it.
RUN mkdir ../app && tar -xzf "$(npm pack --silent --ignore-scripts)" -C ../app --strip-components=1 && mv node_modules ../app/

FROM docker.io/library/node:${NODE}
# Within a container every address is its own: HOST is safe here, for the dashboard serves no others than those it knows.
# A worker's METRICS_PORT is for the health check below, and stays inside until METRICS_HOST and METRICS_TOKEN say otherwise.
ENV NODE_ENV=production HOST=0.0.0.0 PORT=3000 METRICS_PORT=9464
WORKDIR /app
COPY --from=build /build/app ./
# "node" in the image, by its number: Kubernetes cannot tell from a name that it is not root. Nothing here is this user's to change.
USER 1000:1000
EXPOSE 3000 9464
STOPSIGNAL SIGTERM
# The dashboard answers on the one port, a worker on the other. What is wrong elsewhere does not make a process sick.
HEALTHCHECK --interval=15s --timeout=5s --start-period=30s --retries=3 CMD ["node", "-e", "const { PORT, METRICS_PORT } = process.env; Promise.any([PORT, METRICS_PORT].map(async (port) => { if (!(await fetch(`http://127.0.0.1:${port}/healthz`)).ok) throw port; })).then(() => process.exit(0), () => process.exit(1))"]
ENTRYPOINT ["node", "/app/bin/hourhand.mjs"]
CMD ["worker"]
